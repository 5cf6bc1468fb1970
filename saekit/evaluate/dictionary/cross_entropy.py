"""Cross-entropy recovered: what a model loses when a dictionary stands in for the activations that it reconstructs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from saekit.errors import ConfigError, CorpusError
from saekit.evaluate.dictionary.splice import splice, written
from saekit.names.positions import TokenPositions

if TYPE_CHECKING:
    from saekit.lm import At, Edit, LanguageModel
    from saekit.names.site import Site
    from saekit.sae import SAE

Baseline = Literal["zero", "zero-ordinary", "mean"]
BASELINES: tuple[str, ...] = get_args(Baseline)
"""What replaces the activations for comparison:

- `zero`: zeros at every token, BOS and other special tokens too. sae-lens, SAEBench and dictionary_learning use this one.
- `zero-ordinary`: zeros at ordinary tokens; BOS, other special tokens and the first token of a context keep their activations.
- `mean`: at ordinary tokens, the mean activation of the ordinary tokens of the same texts.
"""
DESCRIBED = {
    "zero": "zeros at every token",
    "zero-ordinary": "zeros at every token but special ones",
    "mean": "the mean activation",
}


def check_baseline(baseline: str) -> Baseline:
    """`baseline` itself.

    Raises:
        ConfigError: it is not one of `BASELINES`.
    """
    if baseline not in BASELINES:
        raise ConfigError(f"{baseline!r} is not a baseline.", f"Choose one of {', '.join(BASELINES)}.")
    return baseline  # type: ignore[return-value]


@torch.no_grad()
def ce_recovered(
    lm: LanguageModel,
    sae: SAE,
    site: Site | str | None,
    token_batches: Iterable[Any],
    *,
    baseline: Baseline = "zero",
) -> dict[str, Any]:
    """Measure what a model loses when `sae` replaces the activations that it reconstructs.

    The SAE is spliced in at every ordinary token (`lm.ordinary`). BOS, other special tokens and the first token of a context keep
    their activations, because the SAE was not trained on them. The predictions that count are those made at the tokens where the
    SAE is spliced in: KL at all of them, cross-entropy at those that a real token follows. The defaults are those of
    `sae_lens.evals` (and of SAEBench, which took them from there), so that figures compare. The one difference concerns models
    without BOS: sae-lens treats the first token of a context like any other.

    Args:
        site: where the SAE reads. A transcoder writes at its `site_out`; a cross-layer transcoder has sites of its own.
        token_batches: :class:`saekit.activations.TokenBatch` or :class:`CountedTokens`, or (B, T) token ids without pads. Only
            tokens that were chosen to be trained on (`chosen_BT`) are ordinary.
        baseline: see `BASELINES`.

    Returns:
        ce, ce_spliced: cross-entropy of the model without and with the SAE, in nats per token.
        baseline: its name.
        ce_zero (ce_mean): cross-entropy with the baseline, zeros (the mean).
        ce_uniform: cross-entropy of a uniform guess, ln(vocabulary size).
        ce_recovered: `(ce_baseline - ce_spliced) / (ce_baseline - ce)`. 1 means that nothing is lost, 0 that the SAE is as bad
            as the baseline.
        kl: mean KL(model || spliced) between next-token distributions, in nats.
        n_tokens: number of predictions in the cross-entropies.

    Raises:
        ConfigError: there is no such baseline.
        CorpusError: there is no token to predict.
        StoreMismatch: a transcoder does not say where it writes; or `sae` is a crosscoder that reads after it writes.
    """
    from saekit.lm.run.next_token import last_residuals, logits_of

    check_baseline(baseline)
    splice(lm, sae, site)  # raises before any computation
    batches = [_tokens(lm, batch) for batch in token_batches]
    means = [_mean(lm, target, batches) if baseline == "mean" else None for target in written(lm, sae, site)]
    sums, divergence = torch.zeros(3, dtype=torch.float64), 0.0
    n, n_kl = 0, 0
    for batch in batches:
        spliced = splice(lm, sae, site, batch.positions)
        # Positions of None are every real token.
        where = None if baseline == "zero" else batch.positions
        ablated = [_ablation(target, mean, where) for target, mean in zip(written(lm, sae, site), means)]
        row_N, position_N = batch.ordinary_BT.nonzero(as_tuple=True)
        followed_N = batch.followed_BT[row_N, position_N]
        next_N = batch.tokens_BT[row_N, (position_N + 1).clamp_max(batch.tokens_BT.shape[1] - 1)]
        runs = [
            last_residuals(lm, batch.tokens_BT, (row_N, position_N), attention_mask=batch.mask_BT, edits=edits)
            for edits in ((), spliced, ablated)
        ]
        for some, (own, other, base) in logits_of(lm, *runs):
            kl_N = kl_div(other.log_softmax(-1), own.log_softmax(-1), reduction="none", log_target=True).sum(-1)
            divergence += float(kl_N.double().sum())
            kept, target = followed_N[some].to(own.device), next_N[some].to(own.device)
            losses = [cross_entropy(logits[kept], target[kept], reduction="sum") for logits in (own, other, base)]
            sums += torch.stack(losses).double().cpu()
        n, n_kl = n + int(followed_N.sum()), n_kl + len(row_N)
    if n == 0:
        raise CorpusError("There is no token to predict.", "Give longer texts.")
    ce, ce_spliced, ce_baseline = (sums / n).tolist()
    lost = ce_baseline - ce
    return {
        "ce": ce,
        "ce_spliced": ce_spliced,
        "baseline": baseline,
        "ce_mean" if baseline == "mean" else "ce_zero": ce_baseline,
        "ce_uniform": math.log(lm.vocab_size),
        "ce_recovered": (ce_baseline - ce_spliced) / lost if lost else math.nan,
        "kl": divergence / n_kl,
        "n_tokens": n,
    }


def baseline_of(facts: Mapping[str, Any]) -> tuple[str, float]:
    """Name of the baseline in a result of :func:`ce_recovered`, and its cross-entropy.

    Results that were written before baselines had names have zeros at ordinary tokens.
    """
    name = str(facts.get("baseline", "zero-ordinary"))
    return name, facts["ce_mean" if name == "mean" else "ce_zero"]


class _Tokens(NamedTuple):
    tokens_BT: Tensor
    mask_BT: Tensor | None
    ordinary_BT: Tensor
    followed_BT: Tensor
    """True where a real token follows."""
    positions: Any
    """Positions of the ordinary tokens, for edits."""


class CountedTokens(NamedTuple):
    """B rows of T tokens, and which of these count."""

    tokens_BT: Tensor
    """int64, with pads on the right."""
    mask_BT: Tensor
    """1 at real tokens."""
    chosen_BT: Tensor | None
    """True at tokens that are trained on; None: all. See :func:`saekit.lm.ordinary_tokens.ordinary`."""


def _tokens(lm: LanguageModel, batch: Any) -> _Tokens:
    from saekit.lm.ordinary_tokens import positions_from_mask

    tokens_BT = (batch if isinstance(batch, Tensor) else batch.tokens_BT).to(lm.device)
    mask_BT = None if isinstance(batch, Tensor) else batch.mask_BT.to(lm.device)
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    followed_BT = torch.zeros_like(real_BT)
    followed_BT[:, :-1] = real_BT[:, 1:]
    chosen_BT = getattr(batch, "chosen_BT", None)
    ordinary_BT = lm.ordinary(tokens_BT, mask_BT, chosen=chosen_BT)
    partial = chosen_BT is not None and not bool(chosen_BT[real_BT.to(chosen_BT.device)].all())
    if not partial:
        return _Tokens(tokens_BT, mask_BT, ordinary_BT, followed_BT, "all")
    places = zip(positions_from_mask(real_BT), ordinary_BT)
    positions = TokenPositions(rows=tuple(tuple(place_T[chosen_T].tolist()) for place_T, chosen_T in places))
    return _Tokens(tokens_BT, mask_BT, ordinary_BT, followed_BT, positions)


def _ablation(site: Site, mean: Tensor | None, positions: Any) -> Edit:
    """The edit that replaces the activations at `site` by the mean, or by zeros."""
    from saekit.lm import Edit

    def ablate(y: Tensor, at: At) -> Tensor:
        return torch.zeros_like(y) if mean is None else mean.to(y.device, y.dtype).expand_as(y)

    return Edit(site, ablate, positions=positions)


def _mean(lm: LanguageModel, site: Site, batches: list[_Tokens]) -> Tensor:
    """Mean activation at `site` of the ordinary tokens."""
    from saekit.lm import Edit

    total, n = torch.zeros(()), 0

    def add(x: Tensor, at: At) -> Tensor:
        nonlocal total, n
        total, n = total + x.double().sum(0), n + len(x)
        return x

    for batch in batches:
        lm.run(batch.tokens_BT, attention_mask=batch.mask_BT, edits=[Edit(site, add, positions=batch.positions)], stop_after=site)
    return total / max(n, 1)
