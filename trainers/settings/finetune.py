"""Training that starts from an SAE there is, instead of from chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, StoreMismatch
from saekit.sae import ARCHITECTURES, SAE, load_sparsity
from trainers.objectives.base import OBJECTIVES, Objective
from trainers.settings.config import TrainConfig
from trainers.step.parameters import Parameters

# Parameter -> the tensor that it becomes.
_BECOMES = {
    "W_enc_FD": "W_enc",
    "b_enc_F": "b_enc",
    "W_dec_FE": "W_dec",
    "b_dec_E": "b_dec",
    "W_skip_ED": "W_skip",
    "b_mag_F": "b_mag",
    "r_mag_F": "r_mag",
    "log_threshold_F": "threshold",
}


def settings_of(sae: SAE, source: str | Path, *, with_site: bool) -> dict[str, Any]:
    """Settings that an SAE brings along: its architecture, its number of latents, how many of them fire and where, as far as it
    says so."""
    cfg = sae.cfg
    found: dict[str, Any] = {"n_latents": cfg.n_latents}
    row = ARCHITECTURES[cfg.architecture]
    arch = cfg.metadata.get("training_architecture") if row.transcodes else cfg.architecture
    if row.transcodes:
        found["skip"] = row.skips
        arch = arch if arch in OBJECTIVES else {"relu": "standard"}.get(row.activation, row.activation)
    if arch in OBJECTIVES:
        found["arch"] = arch
    frequency = load_sparsity(source, cfg.n_latents) if Path(source).is_dir() else None
    if cfg.k is not None or frequency is not None:
        found["l0"] = max(1, round(cfg.k if cfg.k is not None else float(frequency.sum())))  # type: ignore[union-attr]
    if with_site:
        found |= {key: site for key, site in (("site", cfg.site), ("site_out", cfg.site_out)) if site is not None}
    return found


def check(sae: SAE, config: TrainConfig, width: int, width_out: int, *, transcodes: bool) -> None:
    """Raise where training cannot start from `sae`.

    Raises:
        StoreMismatch: it reads or predicts another number of values than the site has.
        ConfigError: it has another number of latents, normalises its input, or one of the two is a transcoder.
    """
    cfg = sae.cfg
    if cfg.transcodes != transcodes:
        own, wanted = ("another site than it reads" if each else "what it reads" for each in (cfg.transcodes, transcodes))
        raise ConfigError(f"{sae.name} predicts {own}, and {wanted} is to be predicted.", "Start from one of the same kind.")
    if (cfg.d_in, cfg.d_out) != (width, width_out):
        own, there = (f"{a}" if a == b else f"{a} to {b}" for a, b in ((cfg.d_in, cfg.d_out), (width, width_out)))
        raise StoreMismatch(
            f"{sae.name} is for {own} numbers per token, and these are {there}.", "It is of another model or site."
        )
    if cfg.n_latents != config.n_latents:
        raise ConfigError(f"n_latents={config.n_latents} is impossible from {sae.name}.", f"It has {cfg.n_latents}.")
    if cfg.normalizes:
        raise ConfigError(f"{sae.name} normalises every token ({cfg.normalize_activations}), which training does not.")


def parameters(sae: SAE, objective: Objective) -> Parameters:
    """The parameters of which `objective` would make `sae`, on the CPU; what it keeps beside them is noted in its state.

    Of those with latents it is what this process has. They do the same to the data; where the objective wants decoder rows of
    norm 1, codes are rescaled for it.

    Raises:
        ConfigError: the SAE lacks what the architecture needs, or has what it cannot keep.
    """
    tensors, wanted = _in_units_of_training(sae, objective), objective.start()
    becomes = _BECOMES
    if "r_mag_F" in wanted:
        becomes = _BECOMES | {"b_enc_F": "b_gate"}
        if "threshold" in tensors:  # a JumpReLU is a gated SAE whose magnitudes are its pre-activations
            b_enc_F, threshold_F = tensors["b_enc"], tensors["threshold"].clamp(0, 1e6)
            tensors |= {"b_gate": b_enc_F - threshold_F, "b_mag": b_enc_F, "r_mag": torch.zeros_like(b_enc_F)}
    found = Parameters()
    for name in wanted:
        if (tensor := tensors.get(becomes[name])) is None:
            missing = f"{objective.config.arch} cannot start from {sae.name}: that has no {becomes[name]}."
            raise ConfigError(missing, f"Choose another arch: {sae.cfg.architecture} is what it is.")
        tensor = tensor.clamp(1e-6, 1e6).log() if name == "log_threshold_F" else tensor
        found[name] = objective.group.part(name, tensor.T if name == "W_enc_FD" else tensor).contiguous()
    left = [name for name in ("W_skip", "threshold") if name in tensors and name not in map(becomes.get, wanted)]
    if "W_skip" in left or (objective.config.arch == "standard" and "threshold" in left):
        arch = objective.config.arch
        raise ConfigError(f"{arch} would lose the {left[0]} of {sae.name}.", f"{sae.cfg.architecture} is what it is.")
    if "threshold" in objective.state and "threshold" in tensors:
        objective.state["threshold"].fill_(tensors["threshold"].median().item())
    return found


@torch.no_grad()
def _in_units_of_training(sae: SAE, objective: Objective) -> dict[str, Tensor]:
    """What :meth:`Objective.tensors` gave, if it was trained there; in float64."""
    t = {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in sae.state_dict().items()}
    if not (sae.cfg.transcodes or sae.cfg.apply_b_dec_to_input):  # training subtracts b_dec
        shift_F = t["b_dec"] @ t["W_enc"]
        for name, factor_F in (("b_enc", 1.0), ("b_gate", 1.0), ("b_mag", t["r_mag"].exp() if "r_mag" in t else 1.0)):
            if name in t:
                t[name] += shift_F * factor_F
    reads, writes = objective.reads.scale, objective.writes.scale
    factors = {"W_enc": 1 / reads, "W_dec": writes, "b_dec": writes, "W_skip": writes / reads}
    for name in factors.keys() & t.keys():
        t[name] *= factors[name]
    if objective.unit_rows:
        norm_F = t["W_dec"].norm(dim=1)
        norm_F = norm_F.where(norm_F > 0, 1.0)
        t["W_dec"] /= norm_F[:, None]
        for name in ("W_enc", "b_enc", "b_gate", "b_mag", "threshold"):
            if name in t:
                t[name] *= norm_F
    return t
