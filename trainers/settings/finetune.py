"""Training that starts from an SAE there is, instead of from chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, StoreMismatch
from saekit.sae import ARCHITECTURES, SAE, Loaded
from saekit.sae.whitening import fold
from trainers.objectives.base import OBJECTIVES, Objective
from trainers.settings.config import TrainConfig
from trainers.step.parameters import Parameters


def settings_of(loaded: Loaded, *, with_site: bool) -> dict[str, Any]:
    """Settings that an SAE implies, as far as its files give them: architecture, number of latents, L0 and sites."""
    cfg, density_F = loaded.sae.cfg, loaded.density_F
    found: dict[str, Any] = {"n_latents": cfg.n_latents}
    row = ARCHITECTURES[cfg.architecture]
    arch = cfg.metadata.get("training_architecture") if row.kind.transcodes else cfg.architecture
    if row.kind.transcodes:
        found["skip"] = row.skips
        arch = arch if arch in OBJECTIVES else {"relu": "standard"}.get(row.activation, row.activation)
    if arch in OBJECTIVES:
        found["arch"] = arch
    if cfg.k is not None or density_F is not None:
        found["l0"] = max(1, round(cfg.k if cfg.k is not None else float(density_F.sum())))  # type: ignore[union-attr]
    if with_site:
        found |= {key: site for key, site in (("site", cfg.site), ("site_out", cfg.site_out)) if site is not None}
    return found


def check(sae: SAE, config: TrainConfig, width: int, width_out: int, *, transcodes: bool) -> None:
    """Raise an error if training cannot start from `sae`.

    Raises:
        StoreMismatch: the widths of `sae` differ from those of the sites.
        ConfigError: `sae` has another number of latents, normalises its input, or only one of `sae` and the run is a transcoder.
    """
    cfg = sae.cfg
    if cfg.transcodes != transcodes:
        own, wanted = ("a transcoder" if each else "an SAE" for each in (cfg.transcodes, transcodes))
        raise ConfigError(f"{sae.name} is {own}, and the run trains {wanted}.", f"Start from {wanted}.")
    if (cfg.d_in, cfg.d_out) != (width, width_out):
        own, there = (f"{a}" if a == b else f"{a} to {b}" for a, b in ((cfg.d_in, cfg.d_out), (width, width_out)))
        raise StoreMismatch(
            f"{sae.name} is for {own} numbers per token, and these are {there}.", "It is of another model or site."
        )
    if cfg.n_latents != config.n_latents:
        raise ConfigError(f"n_latents={config.n_latents} is impossible from {sae.name}.", f"It has {cfg.n_latents}.")
    if cfg.options is not None:
        raise ConfigError(f"{sae.name} is a {cfg.architecture} SAE, which saekit loads and does not train.")
    if cfg.normalizes:
        raise ConfigError(f"{sae.name} normalises every token ({cfg.normalize_activations}), which training does not.")


def parameters(sae: SAE, objective: Objective) -> Parameters:
    """The parameters on the CPU from which `objective` makes `sae`. Other values that the objective keeps go to its state.

    Parameters with a dimension of latents hold the latents of this process only. The parameters compute the same function as
    `sae`. If the objective requires decoder rows of norm 1, codes are rescaled accordingly; with whitening, the norm is that of
    whitened rows, and an objective that compares latents (TopK and its relatives) begins with another selection.

    Raises:
        ConfigError: the SAE lacks what the architecture needs, or has what it cannot keep.
    """
    arch, tensors, wanted = objective.config.arch, _in_units_of_training(sae, objective), objective.start()
    try:
        p = objective.parameters_of(tensors)
    except KeyError as error:
        missing = f"{arch} cannot start from {sae.name}: that has no {error.args[0]}."
        raise ConfigError(missing, f"Choose another arch. The architecture of the SAE is {sae.cfg.architecture}.") from error
    if tensors:
        raise ConfigError(
            f"{arch} would lose the {next(iter(tensors))} of {sae.name}.", f"Use its architecture, {sae.cfg.architecture}."
        )
    return Parameters({name: objective.group.part(name, p[name]).contiguous() for name in wanted})


@torch.no_grad()
def _in_units_of_training(sae: SAE, objective: Objective) -> dict[str, Tensor]:
    """The tensors of `sae` in the units of training, in float64: what :meth:`Objective.tensors` would return for it."""
    t = {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in sae.state_dict().items()}
    function = sae.cfg.activation_function
    own = {name: t[name] for name in function.parameters}
    if not (sae.cfg.transcodes or sae.cfg.apply_b_dec_to_input):  # training subtracts b_dec
        t |= function.shift(own, -t["b_dec"] @ t["W_enc"])
    reads, writes = objective.reads.scale, objective.writes.scale
    factors = {"W_enc": 1 / reads, "W_dec": writes, "b_dec": writes, "W_skip": writes / reads}
    for name in factors.keys() & t.keys():
        t[name] *= factors[name]
    whitenings = objective.reads.whitening, objective.writes.whitening
    if whitenings[0] is not None and whitenings[1] is not None:
        fold(t, function, whitenings[0].reversed, whitenings[1].reversed, centres=objective.centres)
    if objective.unit_rows:
        norm_F = t["W_dec"].norm(dim=1)
        norm_F = norm_F.where(norm_F > 0, 1.0)
        t["W_dec"] /= norm_F[:, None]
        for name in ("W_enc", *function.scaled):
            t[name] *= norm_F
    return t
