"""How good a dictionary is: reconstruction on held-out activations, and what the model loses when it is spliced in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from saekit.errors import CorpusError
from saekit.lm.sites import Site
from saekit.sae import SAE, SparseCode

if TYPE_CHECKING:
    from saekit.lm import At, Edit, LanguageModel


@torch.no_grad()
def reconstruction(sae: SAE, batches: Iterable[Mapping[Site, Tensor] | Tensor]) -> dict[str, float]:
    """How well `sae` reconstructs activations.

    Args:
        batches: activations (B, D), or dicts that hold them under the SAE's site (and the target's under `site_out`).

    Returns:
        fvu: fraction of variance unexplained, `sum ||x - x_hat||^2 / sum ||x - mean||^2`, sums and mean over all tokens.
        l0: latents that fire on a token, on average.
        dead_fraction: latents that fired on none of these tokens.
        n_tokens: how many tokens these were.

    Raises:
        CorpusError: there is no token.
    """
    squares = spread = 0.0
    fired_F = torch.zeros(sae.cfg.n_latents, dtype=torch.int64, device=sae.device)
    n, origin = 0, None
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        x_BD, y_BD = _sides(sae, batch)
        code = sae.encode(x_BD)
        error_BD = sae.decode(code, x_BD).double() - y_BD.double()
        squares += float(error_BD.square().sum())
        fired_F += _firings(code, sae.cfg.n_latents)
        if origin is None:  # moments about a point near the mean, so that their difference keeps its digits
            origin = y_BD.double().mean(0)
            total = torch.zeros_like(origin)
        centred_BD = y_BD.double() - origin
        spread += float(centred_BD.square().sum())
        total += centred_BD.sum(0)
        n += len(x_BD)
    if n == 0:
        raise CorpusError("There are no held-out activations to measure on.", "Cache more documents, or hold out more.")
    variance = spread - float(total.square().sum()) / n
    return {
        "fvu": squares / variance if variance > 0 else float(squares > 0),
        "l0": float(fired_F.sum()) / n,
        "dead_fraction": float((fired_F == 0).double().mean()),
        "n_tokens": n,
    }


@torch.no_grad()
def ce_recovered(
    lm: LanguageModel, sae: SAE, site: Site | str, token_batches: Iterable[Any], *, baseline: Literal["zero", "mean"] = "zero"
) -> dict[str, float]:
    """What a model loses when `sae` stands in for the activations it reconstructs.

    The SAE is spliced in at every token but BOS and other special ones, which it was not trained on and which keep their own
    activations. Cross-entropy is that of every real, not special token that has one before it.

    Args:
        site: where it reads; a transcoder writes at its `site_out`.
        token_batches: :class:`saekit.activations.TokenBatch`, or (B, T) token ids without pads.
        baseline: what is put in its place for comparison: zeros, or the mean activation of these tokens.

    Returns:
        ce, ce_spliced: cross-entropy in nats per token of the model as it is, and with the SAE.
        ce_zero or ce_mean: with the baseline.
        ce_recovered: `(ce_baseline - ce_spliced) / (ce_baseline - ce)`; 1 is no loss, 0 is as bad as the baseline.
        kl: mean KL(model || spliced) between next-token distributions, in nats.
        n_tokens: tokens predicted.

    Raises:
        CorpusError: there is no token to predict.
        StoreMismatch: a transcoder does not say where it writes.
    """
    from saekit.lm import Edit
    from saekit.lm.predictions import last_residuals, logits_of

    site = lm.site(site)
    target = lm.site(sae.writes_at(site))
    batches = [_tokens(lm, batch) for batch in token_batches]
    mean = _mean(lm, target, batches) if baseline == "mean" else None

    read: dict[str, Tensor] = {}

    def keep(x: Tensor, at: At) -> Tensor:
        read["x"] = x
        return x

    def splice(y: Tensor, at: At) -> Tensor:
        return sae(read["x"].flatten(1)).reshape(y.shape).to(y.device, y.dtype)

    def ablate(y: Tensor, at: At) -> Tensor:
        return torch.zeros_like(y) if mean is None else mean.to(y.device, y.dtype).expand_as(y)

    spliced: list[Edit] = [Edit(site, keep, positions="all"), Edit(target, splice, order=1, positions="all")]
    ablated = [Edit(target, ablate, positions="all")]
    sums = torch.zeros(4, dtype=torch.float64)
    n = 0
    for tokens_BT, mask_BT, predicted_BT in batches:
        row_N, position_N = predicted_BT.nonzero(as_tuple=True)
        runs = [
            last_residuals(lm, tokens_BT, (row_N, position_N - 1), attention_mask=mask_BT, edits=edits)
            for edits in ((), spliced, ablated)
        ]
        for some, (own, other, base) in logits_of(lm, *runs):
            next_N = tokens_BT[row_N[some], position_N[some]].to(own.device)
            divergence = kl_div(other.log_softmax(-1), own.log_softmax(-1), reduction="sum", log_target=True)
            losses = [cross_entropy(logits, next_N, reduction="sum") for logits in (own, other, base)]
            sums += torch.stack([*losses, divergence]).double().cpu()
        n += len(row_N)
    if n == 0:
        raise CorpusError("There is no token to predict.", "Give longer texts.")
    ce, ce_spliced, ce_baseline, kl = (sums / n).tolist()
    lost = ce_baseline - ce
    return {
        "ce": ce,
        "ce_spliced": ce_spliced,
        f"ce_{baseline}": ce_baseline,
        "ce_recovered": (ce_baseline - ce_spliced) / lost if lost else float("nan"),
        "kl": kl,
        "n_tokens": n,
    }


def _sides(sae: SAE, batch: Mapping[Site, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """What the SAE reads and what it should give, (B, D) both, on its device."""
    if isinstance(batch, Tensor):
        x = y = batch
    else:
        assert sae.cfg.site is not None
        x = batch[sae.cfg.site]
        y = batch[sae.writes_at(sae.cfg.site)]
    return x.to(sae.device).flatten(1), y.to(sae.device).flatten(1)


def _firings(code: SparseCode | Tensor, n_latents: int) -> Tensor:
    if isinstance(code, Tensor):
        return (code != 0).sum(0)
    return torch.bincount(code.indices[code.values != 0], minlength=n_latents)


def _tokens(lm: LanguageModel, batch: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """Token ids, mask, and which tokens are to be predicted: real, not special, and with a real one before."""
    tokens_BT = (batch if isinstance(batch, Tensor) else batch.tokens_BT).to(lm.device)
    mask_BT = None if isinstance(batch, Tensor) else batch.mask_BT.to(lm.device)
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    special = torch.tensor(sorted(lm.special_ids), dtype=tokens_BT.dtype, device=tokens_BT.device)
    predicted_BT = real_BT & ~torch.isin(tokens_BT, special)
    predicted_BT[:, 0] = False
    predicted_BT[:, 1:] &= real_BT[:, :-1]
    return tokens_BT, mask_BT, predicted_BT


def _mean(lm: LanguageModel, site: Site, batches: list[tuple[Tensor, Tensor | None, Tensor]]) -> Tensor:
    """Mean activation at `site` of the tokens that an SAE is spliced in at."""
    from saekit.lm import Edit

    total, n = torch.zeros(()), 0

    def add(x: Tensor, at: At) -> Tensor:
        nonlocal total, n
        total, n = total + x.double().sum(0), n + len(x)
        return x

    for tokens_BT, mask_BT, _ in batches:
        lm.run(tokens_BT, attention_mask=mask_BT, edits=[Edit(site, add, positions="all")], stop_after=site)
    return total / max(n, 1)
