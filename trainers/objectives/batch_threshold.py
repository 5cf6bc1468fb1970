"""The largest entries of a batch, and the threshold that replaces this selection at inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.step.distributed import ALONE, Group

_BELOW = 0.96  # of the last batch's threshold: where candidates are looked for first
_SAMPLE = 64  # rows by which a threshold is guessed where there was no batch yet
_MEMORY = 1000  # steps that the running threshold remembers, or a tenth of the run while that is less


class RunningThreshold:
    """The smallest activation that the selection over a batch keeps, averaged over steps.

    The average is over about the last tenth of the steps so far, at most the last 1000. It starts at the first value, because a
    start at 0 would still bias the average at the end of a short run. As the threshold of a JumpReLU it keeps as many latents per
    token, on average, as the selection did (arXiv 2412.06410, section 4).

    Attributes:
        state: `threshold`, `threshold_last` (of the last batch; -1 before the first) and `threshold_steps`.
    """

    def __init__(self, device: str | None) -> None:
        self.state = {
            "threshold": torch.zeros((), device=device),
            "threshold_last": torch.full((), -1.0, device=device),
            "threshold_steps": torch.zeros((), device=device),
        }

    @property
    def value(self) -> Tensor:
        return self.state["threshold"]

    @property
    def last(self) -> Tensor:
        return self.state["threshold_last"]

    def observe(self, smallest: Tensor) -> None:
        """Update the average with the smallest activation that was kept in a batch."""
        self.last.copy_(smallest)
        steps = self.state["threshold_steps"]
        self.value.lerp_(self.last, 1 / (1 + (steps / 10).clamp(max=_MEMORY - 1)))
        steps += 1


def largest_of_batch(encode: Callable[[Tensor, Tensor], Code], x_BD: Tensor, n: int, guess: Tensor, group: Group = ALONE) -> Code:
    """The n largest positive entries of all tokens together; fewer only if fewer are positive.

    Only entries above a guessed threshold are computed and sorted. If they are too few, the guess is lowered.

    Args:
        encode: function of rows and a floor that returns all entries above the floor; see
            :func:`saekit.sae.kernels.encode_above`.
        x_BD: rows to encode.
        guess: scalar, the threshold of a similar batch; below 0 for none.
        group: the processes that hold the rows and latents; the selection is over all of them.
    """
    floor = guess * _BELOW
    if guess < 0:
        with torch.no_grad():
            few_N = torch.cat(group.gather(encode(x_BD[:_SAMPLE], torch.zeros_like(guess)).values_N)[0])
        wanted = n * group.count(min(_SAMPLE, len(x_BD))) // max(1, group.count(len(x_BD)))
        floor = _nth_largest(few_N, wanted) * _BELOW if 0 < wanted < len(few_N) else torch.zeros_like(guess)
    lower = 0.8
    while True:
        code = encode(x_BD, floor)
        (values,) = group.gather(code.values_N.detach())
        found = sum(map(len, values))
        if found >= n or floor <= 0:
            return _keep_largest(code, values, n, group.rank) if found > n else code
        floor = torch.where(floor > 1e-3 * guess.abs(), lower * floor, 0.0)
        lower *= lower  # each time costs a product


def smallest(code: Code, group: Group) -> Tensor | None:
    """The smallest value of a code in all processes; None where it is empty."""
    values_N = code.values_N.detach()
    if group.world == 1:
        return values_N.min() if len(values_N) else None
    least = group.least(values_N.min() if len(values_N) else values_N.new_full((), torch.inf))
    return least if least.isfinite() else None


def _keep_largest(code: Code, values: list[Tensor], n: int, rank: int) -> Code:
    """Of the code, which has `values[rank]`, what is among the n largest of all values."""
    values_N = values[0] if len(values) == 1 else torch.cat(values)
    nth = _nth_largest(values_N, n)
    keep_N = values_N >= nth
    surplus = int(keep_N.sum()) - n
    if surplus:  # equals of the n-th: the last of them go
        keep_N[(values_N == nth).nonzero()[-surplus:, 0]] = False
    keep_N = keep_N.split([*map(len, values)])[rank]
    kept_N1 = torch.cat([code.start_B1.new_zeros(1), keep_N.cumsum(0)])
    return replace(code, values_N=code.values_N[keep_N], latents_N=code.latents_N[keep_N], start_B1=kept_N1[code.start_B1])


def _nth_largest(values_N: Tensor, n: int) -> Tensor:
    return values_N.kthvalue(len(values_N) - n + 1).values
