"""The QK fix: what patching a query or a key does to an attention pattern is computed, not linearised.

Behind a softmax that is sure of its choice the gradient of the scores vanishes, and so do the first-order effects of queries and
keys. AtP* (Kramar et al., arXiv 2403.00745, section 3.1) recomputes the softmax for each patched query or key instead. The effect
on the metric is then the change of the pattern times the gradient of the metric with respect to the pattern.

With p = A_qt, d the change of the score (q, t) and G the gradient at the pattern, patching key t changes query q's row by

    p expm1(d) / (1 + p expm1(d)) * (G_qt - sum_j A_qj G_qj)

so that all keys cost as much as one pass of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.layout.attention import AttentionCall
from saekit.lm.run.attention_patterns import weighed_by
from saekit.names.site import Site

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_POINTS = 8
"""Points of the path on which a softmax is averaged."""
_SMALL = 1e-6
"""Changes of a score below this are linearised."""


class Effects(NamedTuple):
    """What patching each query and each key alone does to the metric, through this layer's patterns.

    Attributes:
        query_BHT: (B, H, T) float64.
        key_BHT: (B, Hkv, T) float64; a key that several queries share acts on all their patterns.
    """

    query_BHT: Tensor
    key_BHT: Tensor


@dataclass
class QKFix:
    """Attention of one layer in a run, with the queries and keys of another run to patch in.

    Attributes:
        upstream: let what comes before the scores see the mean slope of the softmax along the patch instead of its slope at the
            run, so that nodes behind a sure softmax are not lost either.
        other: queries and keys of the other run.
        effects: those found in the last backward pass.
    """

    upstream: bool = True
    other: AttentionCall | None = None
    effects: Effects | None = None

    def keep(self, call: AttentionCall) -> Tensor:
        """The pattern of the other run, whose queries and keys are kept."""
        self.other = call._replace(query=call.query.detach(), key=call.key.detach())
        return call.pattern()

    def weigh(self, call: AttentionCall) -> Tensor:
        """The pattern, with the gradient of the QK fix."""
        pattern: Tensor = _Fixed.apply(call.query, call.key, call, self)
        return pattern


class _Fixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, call: AttentionCall, fix: QKFix) -> Tensor:
        ctx.call, ctx.fix = call._replace(query=query.detach(), key=key.detach()), fix
        pattern = ctx.call.pattern()
        ctx.save_for_backward(pattern)
        return pattern

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (pattern,) = ctx.saved_tensors
        fix: QKFix = ctx.fix
        assert fix.other is not None, "the other run comes first"
        fix.effects, (query, key) = _fixed(ctx.call, fix.other, pattern, grad, fix.upstream)
        return query.to(ctx.call.query.dtype), key.to(ctx.call.key.dtype), None, None


def _fixed(
    call: AttentionCall, other: AttentionCall, pattern: Tensor, grad: Tensor, upstream: bool
) -> tuple[Effects, tuple[Tensor, Tensor]]:
    """The effects of single queries and keys, and the gradients that go on to the queries and keys.

    Computed in at least float32, of tensors (B, H, Q, K).
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    call, other = (each._replace(query=each.query.to(wide), key=each.key.to(wide)) for each in (call, other))
    p, G = pattern.to(wide), grad.to(wide)
    centred = G - (p * G).sum(-1, keepdim=True)
    patched_key, patched_query = call._replace(key=other.key), call._replace(query=other.query)
    scores = call.scores()
    by_key = _effect_of_scores(p, patched_key.scores() - scores, centred)
    by_query = (patched_query.pattern().to(wide) - p) * G
    effects = Effects(by_query.sum(-1).double(), _shared(by_key.sum(-2), call).double())
    slope_q = slope_k = p * centred * _cap_slope(call, scores)
    if upstream:
        slope_k = _mean_slope(by_key, _uncapped(patched_key) - _uncapped(call), slope_k)
        slope_q = _path_slope(call, patched_query, G)
    grad_query = torch.matmul(slope_q, _expanded(call.key, call)) * call.factor
    grad_key = _shared(torch.matmul(slope_k.transpose(2, 3), call.query) * call.factor, call)
    return effects, (grad_query, grad_key)


def _effect_of_scores(p: Tensor, d: Tensor, centred: Tensor) -> Tensor:
    """The closed form of the module's docstring, for each entry."""
    e = torch.expm1(torch.where(p > 0, d, 0.0).clamp(max=80.0))  # masked entries have p = 0; exp(80) is below float32's limit
    # An entry that is rounded to 1 leaves nothing to the others: its centred gradient is 0, and so is the effect, not 0 / 0.
    return p * e / (1 + p * e).clamp_min(torch.finfo(p.dtype).tiny) * centred


def _mean_slope(effect: Tensor, change: Tensor, slope: Tensor) -> Tensor:
    """The effect of a changed score for each unit of its change; the slope where it hardly changes."""
    small = change.abs() < _SMALL
    return torch.where(small, slope, effect / torch.where(small, 1.0, change))


def _path_slope(start: AttentionCall, end: AttentionCall, G: Tensor) -> Tensor:
    """The mean gradient of the scores as queries go from one call's to the other's, by the midpoint rule."""
    slopes = []
    for step in range(_POINTS):
        at = start._replace(query=start.query + (step + 0.5) / _POINTS * (end.query - start.query))
        p = at.pattern().to(G)
        slopes.append(p * (G - (p * G).sum(-1, keepdim=True)) * _cap_slope(at, at.scores()))
    return torch.stack(slopes).mean(0)


def _cap_slope(call: AttentionCall, scores: Tensor) -> Tensor | float:
    """The derivative of the soft cap."""
    return 1.0 if call.softcap is None else 1 - (scores / call.softcap).square()


def _uncapped(call: AttentionCall) -> Tensor:
    return call._replace(softcap=None).scores()


def _expanded(key: Tensor, call: AttentionCall) -> Tensor:
    return key.repeat_interleave(call.query.shape[1] // key.shape[1], 1)


def _shared(per_head: Tensor, call: AttentionCall) -> Tensor:
    """(B, Hkv, ...) the sums over the query heads that share a key head."""
    return per_head.unflatten(1, (call.key.shape[1], -1)).sum(2)


@contextmanager
def attending(lm: LanguageModel, weigh: Mapping[Site, Callable[[AttentionCall], Tensor]]) -> Iterator[None]:
    """Within the block, runs that read the patterns at some sites compute them with these functions."""
    functions: dict[nn.Module, Callable[[AttentionCall], Tensor]] = {lm.attention(site): each for site, each in weigh.items()}
    with weighed_by(functions):
        yield


def pattern_sites(lm: LanguageModel) -> list[Site]:
    """The patterns of the layers whose attention function can be chosen.

    Raises:
        UnsupportedModel: there is no such layer.
    """
    sites = [site for site in lm.sites() if site.kind == "pattern" and lm.hook_point(site) is None]
    if not sites:
        raise UnsupportedModel(
            f"{lm.name} computes its attention itself, so that its scores cannot be recomputed.",
            "Choose spaces without q and k, and qk_fix=False.",
        )
    return sites
