"""The tuned lens (Belrose et al. 2023): an affine map for each layer, trained to predict the model's output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, Diverged
from saekit.lm.run.batches import text_batches, text_rows
from saekit.locate.vocabulary.lens import Lens, fitted_sites, log_probabilities, provenance
from saekit.names.site import Site
from saekit.objects.spaces import wide
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_NUMBERS = 1 << 23
"""Logits that are computed at once with gradients."""


@dataclass(frozen=True)
class TunedSettings:
    """How a tuned lens is trained."""

    steps: int = 250
    """Batches of texts to train on; texts are repeated where there are fewer."""
    batch_size: int = 8
    """Texts in a batch."""
    lr: float = 1e-3
    """Learning rate of Adam; it falls linearly to zero."""
    heldout: float = 0.1
    """Share of the texts that are not trained on and measure the result; at least one text."""
    seed: int = 0
    """Of the order of the texts."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.lr > 0 or not 0 < self.heldout < 1:
            raise ConfigError(f"{self} is impossible.", "Counts and lr must be positive, heldout between 0 and 1.")


def fit_tuned(
    lm: LanguageModel,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    sites: Sequence[Site | str] | None = None,
    settings: TunedSettings | None = None,
    progress: bool = True,
) -> Lens:
    """Train a tuned lens: logits unembed(h + A h + b), with A and b from zero, where the lens is the logit lens.

    The loss of each site is KL(model || lens) in nats, averaged over ordinary tokens. Each site has an optimiser of its own, so
    that the result of a site does not depend on the others.

    Args:
        lm: the model.
        texts: texts or rows of token ids, at least two.
        sites: residual sites; None: the output of every layer but the last.
        settings: how to train.
        progress: show a progress bar.

    Returns:
        The lens. Its facts hold `heldout_kl` and `heldout_kl_logit`: by site, the KL on held-out texts of this lens and of the
        logit lens.

    Raises:
        ConfigError: there are fewer than two texts with ordinary tokens, or a site is not in the residual stream.
        Diverged: the loss is not finite.
    """
    settings, chosen = settings or TunedSettings(), fitted_sites(lm, sites)
    rows = [row for row in text_rows(lm, texts) if len(row) > 1]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    n_heldout = max(1, math.floor(settings.heldout * len(rows)))
    if len(rows) <= n_heldout:
        raise ConfigError(f"A tuned lens cannot be trained on {len(rows)} texts.", "Give at least two: one measures the result.")
    heldout, trained = [rows[i] for i in order[:n_heldout]], [rows[i] for i in order[n_heldout:]]
    precision = wide(lm.dtype)
    shape = {"dtype": precision, "device": lm.device}
    D = lm.d_model
    maps = {site: (torch.zeros(D, D, **shape), torch.zeros(D, **shape)) for site in chosen}  # type: ignore[call-overload]
    optimisers = {site: torch.optim.Adam([p.requires_grad_() for p in pair], lr=settings.lr) for site, pair in maps.items()}
    with track("training", total=settings.steps, unit="batches", subject="the tuned lens", enabled=progress) as bar:
        for step, batch in enumerate(_endless(lm, trained, settings)):
            acts = _activations(lm, chosen, *batch)
            losses = _gradients(lm, maps, acts)
            if not math.isfinite(sum(losses)):
                raise Diverged(f"The loss of the tuned lens is not finite at step {step}.", "Choose a smaller learning rate.")
            for optimiser in optimisers.values():
                optimiser.step()
                optimiser.param_groups[0]["lr"] = settings.lr * (1 - (step + 1) / settings.steps)
            bar.update(step + 1, note=f"KL {sum(losses) / len(losses):.3f} nats")
            if step + 1 == settings.steps:
                break
    lens = Lens(
        "tuned",
        {site: A.detach() for site, (A, _) in maps.items()},
        {site: b.detach() for site, (_, b) in maps.items()},
    )
    measured = {
        "heldout_kl": lens_kl(lm, lens, heldout, sites=chosen, batch_size=settings.batch_size),
        "heldout_kl_logit": lens_kl(lm, Lens(), heldout, sites=chosen, batch_size=settings.batch_size),
    }
    counts = {"texts": len(trained), "heldout_texts": len(heldout), "settings": vars(settings)}
    return Lens("tuned", lens.matrices, lens.offsets, provenance(lm, **counts, **measured))


@torch.no_grad()
def lens_kl(
    lm: LanguageModel,
    lens: Lens,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    sites: Sequence[Site | str] | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """KL(model || lens) in nats by site, averaged over the ordinary tokens of texts.

    Raises:
        ConfigError: the texts have no ordinary token.
    """
    chosen = fitted_sites(lm, sites)
    sums, tokens = dict.fromkeys(map(str, chosen), 0.0), 0
    for padded in text_batches(lm, texts, batch_size):
        acts = _activations(lm, chosen, *padded)
        final_ND = acts.final_ND
        tokens += len(final_ND)
        for rows in _chunks(lm, len(final_ND)):
            log_p = log_probabilities(lm.unembed(final_ND[rows]))
            for site in chosen:
                sums[str(site)] += float(_kl(lm, log_p, lens.to_final(lm, site, acts.by_site[site][rows])))
    if not tokens:
        raise ConfigError("The texts have no ordinary token to measure a lens on.", "Give longer texts.")
    return {site: total / tokens for site, total in sums.items()}


@dataclass(frozen=True)
class _Activations:
    """Residual vectors of the ordinary tokens of a batch, (N, d_model): by site, and after the last layer."""

    by_site: dict[Site, Tensor]
    final_ND: Tensor


def _activations(lm: LanguageModel, sites: Sequence[Site], tokens_BT: Tensor, mask_BT: Tensor) -> _Activations:
    final = Site("resid_post", lm.n_layers - 1)
    acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[*sites, final], logits=None).acts
    counts_BT = lm.ordinary(tokens_BT.to(lm.device), mask_BT.to(lm.device))
    kept = {site: x[counts_BT.to(x.device)].to(lm.device) for site, x in acts.items()}
    return _Activations(kept, kept[final])


def _gradients(lm: LanguageModel, maps: dict[Site, tuple[Tensor, Tensor]], acts: _Activations) -> list[float]:
    """Set the gradients of the maps of all sites, and return the loss of each."""
    losses, N = dict.fromkeys(maps, 0.0), len(acts.final_ND)
    for A_DD, b_D in maps.values():
        A_DD.grad, b_D.grad = torch.zeros_like(A_DD), torch.zeros_like(b_D)
    for rows in _chunks(lm, N):
        log_p = log_probabilities(lm.unembed(acts.final_ND[rows])).detach()
        for site, (A_DD, b_D) in maps.items():
            x_nD = acts.by_site[site][rows]
            wide_nD = x_nD.to(A_DD.dtype)
            moved_nD = (wide_nD + wide_nD @ A_DD.T + b_D).to(x_nD.dtype)
            loss = _kl(lm, log_p, moved_nD) / N
            # Of these two alone: the model's own weights may want gradients too.
            for parameter, part in zip((A_DD, b_D), torch.autograd.grad(loss, [A_DD, b_D])):
                assert parameter.grad is not None
                parameter.grad += part
            losses[site] += float(loss.detach())
    return list(losses.values())


def _kl(lm: LanguageModel, log_p_nV: Tensor, moved_nD: Tensor) -> Tensor:
    """Sum over rows of KL(model || lens), from the model's log-probabilities and residual vectors as the last layer has them."""
    log_q = log_probabilities(lm.unembed(moved_nD))
    return (log_p_nV.exp() * (log_p_nV - log_q)).sum()


def _chunks(lm: LanguageModel, n: int) -> Iterator[slice]:
    step = max(1, _NUMBERS // lm.vocab_size)
    return (slice(start, start + step) for start in range(0, n, step))


def _endless(lm: LanguageModel, rows: list[list[int]], settings: TunedSettings) -> Iterator[Any]:
    """Batches of the rows, in a new random order each time round."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    while True:
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        yield from lm.text.batches(shuffled, settings.batch_size)
