"""From gradients at sites to scores of objects: a change of each coefficient times the gradient of the metric along it.

Every gradient method is such a product; they differ in the change and in where the gradient is taken. For the features of an SAE
the product is that of the delta form y = x + dec(f') - dec(f), which keeps the error: dM/df = W_dec . dM/dy (Marks et al., arXiv
2403.19647). Only features that are active in one of the runs are computed: memory grows with their number, not with the width of
the SAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.locate.gradient.backward import Acts
from saekit.locate.gradient.problem import Batch, Groups, Problem
from saekit.locate.scored import ranked
from saekit.names.ref import Ref
from saekit.objects import Error, Features, Space
from saekit.progress import track
from saekit.tasks import Ranking

_NUMBERS = 1 << 24
"""Numbers of gathered decoder rows that are held at once."""


class Part(NamedTuple):
    """Scores of objects of one space. An object is a unit in one group of positions.

    Attributes:
        keys_N: (N,) int64 unit * groups + group, ascending.
        scores_NB: (N, B) float64.
    """

    keys_N: Tensor
    scores_NB: Tensor


def products(space: Space, plus: Acts, minus: Acts | None, grads: Acts, groups: Groups, *, base: Acts | None = None) -> Part:
    """The sum over the positions of each group of (coefficient in `plus` - coefficient in `minus`) * gradient.

    Args:
        space: whose objects are scored.
        plus: activations (B, T, ...) of one run, by site.
        minus: of another run, or None for coefficients of 0.
        grads: the gradients of the metric, by site.
        groups: of the positions.
        base: of the run that the gradients are from, for SAEs that scale their features by the activation; None: `plus`.
    """
    grad, base = grads[space.site_out], plus if base is None else base
    if isinstance(space, Features):
        signs = [(plus, 1.0)] if minus is None else [(plus, 1.0), (minus, -1.0)]
        parts = [_active(space, acts, base, grad, groups, sign) for acts, sign in signs]
        return total(parts, len(groups.group_BT))
    change = coefficients(space, plus)
    if minus is not None:
        change = change - coefficients(space, minus)
    along = space.pullback(grad, base[space.site])
    return summed((change * along.to(change)).flatten(3).sum(3) if space.unit_shape else change * along, groups)


def squares(space: Space, acts: Acts, grads: Acts, groups: Groups) -> Part:
    """The sum over the positions of each group of the squared gradient along each coefficient.

    That of a feature counts where the feature is active.
    """
    grad = grads[space.site_out]
    if isinstance(space, Features):
        return _active(space, acts, acts, grad, groups, None)
    squared = space.pullback(grad, acts[space.site]).square()
    return summed(squared.flatten(3).sum(3) if space.unit_shape else squared, groups)


def coefficients(space: Space, acts: Acts) -> Tensor:
    """(B, T, n, *unit_shape) of all units of a space."""
    if isinstance(space, Error):
        return space.read(acts[space.site], out=acts[space.site_out])
    return space.read(acts[space.site])


def decoded_change(space: Space, start: Acts, end: Acts | None) -> Tensor:
    """What setting all coefficients of a space from those in `start` to those in `end` adds to the activation at `site_out`.

    Args:
        space: whose units are set.
        start: activations by site, in the run whose activation changes.
        end: activations of the other run; None sets the coefficients to 0.
    """
    h = start[space.site_out]
    if isinstance(space, Features):
        changed = -_decoded(space, start) if end is None else _decoded(space, end) - _decoded(space, start)
        if space.sae.cfg.normalizes and not space.sae.cfg.transcodes:
            changed = changed * space.sae.scale(_flat(space, start[space.site])).to(changed)
        return changed.reshape(h.shape).to(h)
    if isinstance(space, Error):
        change = -coefficients(space, start) if end is None else coefficients(space, end) - coefficients(space, start)
        return change.squeeze(-1 - len(space.unit_shape)).to(h)
    return -h if end is None else end[space.site_out] - h


def total(parts: Sequence[Part], B: int) -> Part:
    """The sum of several parts over the same prompts; an object that a part lacks adds 0."""
    if len(parts) == 1:
        return parts[0]
    keys_N, place = torch.cat([part.keys_N for part in parts]).unique(return_inverse=True)
    scores_NB = torch.zeros(len(keys_N), B, dtype=torch.float64, device=keys_N.device)
    return Part(keys_N, scores_NB.index_add_(0, place, torch.cat([part.scores_NB for part in parts])))


def _decoded(space: Features, acts: Acts) -> Tensor:
    code = space.sae.encode_sparse(_flat(space, acts[space.site])).rows
    return code.decode(space.sae.W_dec)


def _flat(space: Features, h: Tensor) -> Tensor:
    """(tokens, d_in) in the dtype of the SAE."""
    return h.reshape(-1, prod(space.token_shape)).to(space.sae.device, space.sae.dtype)


def summed(values_BTn: Tensor, groups: Groups) -> Part:
    """The sums over the positions of each group of a number for each token and unit."""
    B, _, n = values_BTn.shape
    G = len(groups.labels)
    group_BT = groups.group_BT.to(values_BTn.device)
    row_BT = torch.arange(B, device=group_BT.device)[:, None] * (G + 1) + torch.where(group_BT < 0, G, group_BT)
    # Pads may hold anything, also numbers that are not finite.
    wide_BTn = torch.where((group_BT < 0)[..., None], 0.0, values_BTn.double())
    sums = torch.zeros(B * (G + 1), n, dtype=torch.float64, device=group_BT.device)
    sums.index_add_(0, row_BT.flatten(), wide_BTn.flatten(0, 1))
    scores_nGB = sums.view(B, G + 1, n)[:, :G].permute(2, 1, 0)
    present_G = torch.bincount(group_BT[group_BT >= 0], minlength=G).nonzero()[:, 0]  # a group without tokens has no objects
    keys_nG = torch.arange(n * G, device=present_G.device).view(n, G)[:, present_G]
    return Part(keys_nG.flatten(), scores_nGB[:, present_G].flatten(0, 1))


def _active(space: Features, acts: Acts, base: Acts, grad: Tensor, groups: Groups, sign: float | None) -> Part:
    """Sums over the active features of `acts`: of coefficient * gradient * sign, or of squared gradients where sign is None."""
    B, T = groups.group_BT.shape
    G, sae = len(groups.labels), space.sae
    chosen_BT = groups.group_BT.to(sae.device) >= 0
    code = sae.encode_sparse(_flat(space, acts[space.site])[chosen_BT.flatten()]).rows
    code = code.keep(code.values_N != 0)
    wide = torch.promote_types(sae.dtype, torch.float32)
    grad_ND = grad.reshape(B * T, -1)[chosen_BT.flatten().to(grad.device)].to(sae.device, wide)
    if sae.cfg.normalizes and not sae.cfg.transcodes:
        grad_ND = grad_ND * sae.scale(_flat(space, base[space.site])[chosen_BT.flatten()]).to(grad_ND)
    row_N = code.row_N
    along_N = _along(sae.W_dec, code.latents_N, grad_ND, row_N)
    values_N = along_N.square() if sign is None else sign * code.values_N.double() * along_N
    b, t = chosen_BT.nonzero(as_tuple=True)
    group_N = groups.group_BT.to(sae.device)[b, t][row_N]
    keys_n, place = (code.latents_N * G + group_N).unique(return_inverse=True)
    scores = torch.zeros(len(keys_n), B, dtype=torch.float64, device=keys_n.device)
    return Part(keys_n, scores.index_put_((place, b[row_N]), values_N, accumulate=True))


def _along(W_dec_FD: Tensor, latents_N: Tensor, grad_ND: Tensor, row_N: Tensor) -> Tensor:
    """(N,) float64 the decoder row of each entry times the gradient at its token; decoder rows are gathered a few at a time."""
    step = max(1, _NUMBERS // W_dec_FD.shape[1])
    found = [
        (W_dec_FD[latents].to(grad_ND.dtype) * grad_ND[rows]).sum(1).double()
        for latents, rows in zip(latents_N.split(step), row_N.split(step))
    ]
    return torch.cat(found)


@dataclass
class Scores:
    """The scores of all objects of a problem, gathered batch by batch.

    Attributes:
        problem: what is asked.
    """

    problem: Problem
    _parts: list[tuple[int, Batch, Part]] = field(default_factory=list)

    def add(self, space: int, batch: Batch, part: Part) -> None:
        """Take in the scores that the prompts of a batch give to the objects of space number `space`."""
        self._parts.append((space, batch, Part(part.keys_N.cpu(), part.scores_NB.cpu())))

    def table(self) -> tuple[list[Ref], Tensor]:
        """The objects, space by space, and their scores (N, B); an object that a prompt does not have scores 0 there."""
        refs: list[Ref] = []
        scores: list[Tensor] = []
        B = len(self.problem.task)
        for number, space in enumerate(self.problem.spaces):
            parts = [(batch, part) for index, batch, part in self._parts if index == number]
            keys_N = torch.cat([part.keys_N for _, part in parts]).unique()
            scores_NB = torch.zeros(len(keys_N), B, dtype=torch.float64)
            for batch, part in parts:
                columns = slice(batch.columns.start, batch.columns.stop)
                scores_NB[torch.searchsorted(keys_N, part.keys_N), columns] = part.scores_NB
            labels = self.problem.labels(space)
            refs += [space.ref_at(key // len(labels), labels[key % len(labels)]) for key in keys_N.tolist()]
            scores.append(scores_NB)
        return refs, torch.cat(scores)


def ranking(
    problem: Problem, parts: Callable[[Batch], Iterable[Part]], *, method: str, progress: bool, facts: Mapping[str, Any]
) -> Ranking:
    """The ranking of a method, from what it makes of each batch.

    Args:
        problem: what is asked.
        parts: takes a batch and yields the scores of each space of the problem, in their order.
        method: name of the method.
        progress: show a progress bar.
        facts: JSON values for `obtained`, read after the last batch.
    """
    scores = Scores(problem)
    with track("differentiating", total=len(problem.task), unit="prompts", enabled=progress) as bar:
        for batch in problem.batches():
            for number, part in enumerate(parts(batch)):
                scores.add(number, batch, part)
            bar.update(batch.columns.stop)
    refs, scores_NB = scores.table()
    where = problem.where if problem.where is None or isinstance(problem.where, str) else list(problem.where)
    return ranked(
        refs,
        scores_NB,
        method=method,
        lm=problem.lm,
        data=problem.task,
        metric=problem.metric,
        spaces=problem.spaces,
        positions=where,
        **facts,
    )
