"""AtP*: attribution patching with two repairs, for sure softmaxes and for cancelling paths (Kramar et al., arXiv 2403.00745)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import torch

from saekit.errors import UnsupportedModel
from saekit.lm.run.hooks import taken
from saekit.locate.gradient.backward import Acts, Forward, forward, read
from saekit.locate.gradient.patching import check_direction
from saekit.locate.gradient.problem import Batch, Groups, MetricLike, Problem, Where
from saekit.locate.gradient.products import Part, products, ranking, summed
from saekit.locate.gradient.qk_fix import QKFix, attending, pattern_sites
from saekit.names.site import Site
from saekit.objects import HeadVectors, Space, default_spaces
from saekit.objects.registry import SPACES
from saekit.plugins import resolve
from saekit.tasks import Ranking, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_WRITES = ("attn_out", "mlp_out")


def atp_star(
    lm: LanguageModel,
    data: Task,
    *,
    spaces: Sequence[Space] | None = None,
    metric: MetricLike = None,
    positions: Where = None,
    direction: Literal["noise", "denoise"] = "noise",
    qk_fix: bool = True,
    upstream: bool = True,
    grad_drop: bool = True,
    progress: bool = True,
) -> Ranking:
    """Attribution patching with the QK fix and GradDrop.

    - QK fix: for queries and keys (spaces q and k) the softmax is recomputed with the patched vector. With `upstream`, objects
      before an attention pattern see the mean slope of its softmax along the patch. The published method corrects q and k alone,
      and still misses an object whose effect passes a sure softmax of a later layer.
    - GradDrop: the mean of |score| over backward passes that leave out what one layer writes, times L / (L - 1) for L layers, so
      that a direct and an indirect effect that cancel are not lost. The score is the larger of this and of |score| without
      dropping, because a model of few layers may have no path around the layer left out; its sign is that without dropping.

    Positive where the object supports the behaviour. Costs three forward passes and, with GradDrop, L + 1 backward passes.

    Args:
        lm: the model.
        data: a task.
        spaces: whose objects are scored; None: q, k and v where the model has them, and features and errors of the attached SAEs,
            else heads and neurons.
        metric: what the model is judged by; None: the logit difference.
        positions: see :mod:`saekit.locate.gradient`.
        direction: as in :func:`saekit.locate.gradient.attribution_patching`.
        qk_fix: recompute softmaxes.
        upstream: pass the corrected slope on to what comes before.
        grad_drop: average over layers left out.
        progress: show a progress bar.

    Raises:
        ConfigError: the task, the metric, the positions or the direction do not fit, or the metric has no gradient.
        NonFiniteActivations: the metric of a prompt is not finite.
        UnsupportedModel: the QK fix is wanted, and the model computes its attention itself.
    """
    check_direction(direction, ("noise", "denoise"))
    problem = Problem.of(lm, data, _with_qkv(lm) if spaces is None else spaces, metric, positions)
    pass_ = _Passes(problem, direction == "denoise", qk_fix, upstream, grad_drop and lm.n_layers > 1)
    facts = {"direction": direction, "qk_fix": qk_fix, "upstream": upstream and qk_fix, "grad_drop": pass_.drops}
    return ranking(problem, pass_.parts, method="atp_star", progress=progress, facts=facts)


def _with_qkv(lm: LanguageModel) -> list[Space]:
    vectors: list[Space] = [space for name in "qkv" for space in resolve(SPACES[name].make)(lm, None)]
    return vectors + default_spaces(lm)


class _Passes:
    """The passes over one batch, and the scores that they give.

    Args:
        problem: what is asked.
        denoise: gradients are those of the corrupted run.
        qk_fix, upstream: as in :func:`atp_star`.
        drops: run a backward pass for each layer left out.
    """

    def __init__(self, problem: Problem, denoise: bool, qk_fix: bool, upstream: bool, drops: bool) -> None:
        self.problem, self.denoise, self.drops = problem, denoise, drops
        self.fixes = {site: QKFix(upstream) for site in pattern_sites(problem.lm)} if qk_fix else {}
        missing = [space for space in problem.spaces if qk_fix and _is_qk(space) and self._pattern(space) not in self.fixes]
        if missing:
            raise UnsupportedModel(
                f"The scores of the attention at {missing[0].site} cannot be recomputed.",
                "Leave out that space, or use qk_fix=False.",
            )
        self._dropped: int | None = None

    def parts(self, batch: Batch) -> Iterator[Part]:
        """The scores of each space."""
        lm, sites = self.problem.lm, self.problem.sites()
        writes = [site for site in lm.sites() if self.drops and site.kind in _WRITES]
        wanted = {*sites, *self.fixes, *writes}
        with attending(lm, {site: fix.keep for site, fix in self.fixes.items()}):
            other = read(lm, batch, {*sites, *self.fixes}, corrupted=not self.denoise)
        with attending(lm, {site: fix.weigh for site, fix in self.fixes.items()}):
            run = forward(lm, batch, wanted, corrupted=self.denoise)
        acts = {site: act.detach() for site, act in run.acts.items()}
        plain = self._scores(batch, run, acts, other, sites, keep=self.drops)
        if not self.drops:
            yield from plain
            return
        L = lm.n_layers
        sums = [torch.zeros_like(part.scores_NB) for part in plain]
        with ExitStack() as stack:
            for site in writes:
                stack.callback(run.acts[site].register_hook(self._drop(site)).remove)
            for layer in range(L):
                self._dropped = layer
                for total, part in zip(sums, self._scores(batch, run, acts, other, sites, keep=layer < L - 1)):
                    total += part.scores_NB.abs()
        for total, part in zip(sums, plain):
            # A score that cancels to 0 has no sign of its own.
            sign = torch.where(part.scores_NB < 0, -1.0, 1.0)
            yield Part(part.keys_N, sign * torch.maximum(total / (L - 1), part.scores_NB.abs()))

    def _drop(self, site: Site):  # type: ignore[no-untyped-def]  # a hook of torch
        return lambda grad: torch.zeros_like(grad) if site.layer == self._dropped else grad

    def _scores(self, batch: Batch, run: Forward, acts: Acts, other: Acts, sites: Sequence[Site], *, keep: bool) -> list[Part]:
        with torch.inference_mode(False), torch.enable_grad():
            grads = run.grads([*sites, *self.fixes], keep=keep)
        plus, minus = (other, acts) if self.denoise else (acts, other)
        found = []
        for space in self.problem.spaces:
            groups = self.problem.groups(space, batch)
            if self.fixes and _is_qk(space):
                found.append(self._recomputed(space, batch, groups))
            else:
                found.append(products(space, plus, minus, grads, groups, base=acts))
        return found

    def _recomputed(self, space: Space, batch: Batch, groups: Groups) -> Part:
        effects = self.fixes[self._pattern(space)].effects
        assert effects is not None, "a backward pass has come by"
        effect_BTH = (effects.query_BHT if space.site.kind == "q" else effects.key_BHT).transpose(1, 2)
        order_BT = self.problem.lm._order(batch.mask_BT, None)
        if order_BT is not None:  # the model ran with its columns in this order
            effect_BTH = taken(effect_BTH, order_BT.argsort(1))
        return summed(effect_BTH if self.denoise else -effect_BTH, groups)

    @staticmethod
    def _pattern(space: Space) -> Site:
        return Site("pattern", space.site.layer)


def _is_qk(space: Space) -> bool:
    return isinstance(space, HeadVectors) and space.site.kind in ("q", "k")
