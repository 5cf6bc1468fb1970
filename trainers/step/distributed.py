"""Training of one dictionary by several processes, started by torchrun.

This module contains everything that differs from a single process, so that the loop, the losses and the steps are written once.
Each process reads all the data. The order of the data, the position in it and the checkpoints are therefore those of a single
process, and a run can continue with another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from saekit import collective
from saekit.collective import answering, joined
from trainers.step.parameters import Parameters, has_latents

__all__ = ["ALONE", "Group", "Latents", "Rows", "group", "joined"]

_COMPACT = 0.8  # share of latents with a gradient up to which only their rows are sent
_T = TypeVar("_T")
Number = Tensor | float


class Group:
    """The processes that train a dictionary together. This base class is a single process: every method returns its input.

    Attributes:
        rank, world: index of this process, and number of processes.
        splits_rows: whether the rows of a batch are divided over the processes.
        splits_latents: whether the latents are divided over the processes.
        has_biases: whether this process adds b_dec and W_skip to the prediction; one process does if latents are divided.
        copies: number of processes that hold each row of the batch; above 1 if the batch has fewer rows than there are processes.
    """

    rank, world = 0, 1
    copies = 1
    splits_rows = splits_latents = False
    has_biases = True

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def first(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the first process; all processes return its result, or raise its error."""
        return work()

    # Sums over processes

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return tensor

    def total_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over processes of every tensor, in one exchange."""
        return dict(tensors)

    def count(self, n: int) -> int:
        """The sum over processes."""
        return n

    def least(self, tensor: Tensor) -> Tensor:
        """The minimum over processes."""
        return tensor

    def gather(self, *tensors: Tensor) -> list[list[Tensor]]:
        """For each tensor, the tensors of all processes in the order of rank. Their lengths may differ."""
        return [[tensor] for tensor in tensors]

    def sums(self, loss: Number, squares: Number, firings_F: Tensor) -> tuple[Number, Number, Tensor, Number]:
        """Loss, squared error and activation counts of the batch, and the total of the counts, given those of this process."""
        return loss, squares, firings_F, firings_F.sum()

    # Rows of a batch

    def begin(self, n_rows: int) -> slice:
        """Divide a batch over the processes; returns the rows of this process."""
        return slice(0, n_rows)

    def n_rows(self, own: int) -> int:
        """Number of rows in all processes, copies included, given that this process has `own`."""
        return own

    @property
    def share(self) -> float:
        """Fraction of the batch that this process has: the weight of a mean over its rows in the mean over the batch."""
        return 1.0

    def variance(self, e_BE: Tensor) -> Tensor:
        """Mean squared distance of the rows of the batch from their mean."""
        return (e_BE - e_BE.mean(0)).square_().sum() / len(e_BE)

    def from_first_rows(self, number: Tensor | None) -> Tensor | None:
        """The number that the process with the first rows of the batch computed from them."""
        return number

    # Latents

    def own_latents(self, n_latents: int) -> slice:
        """The latents of this process."""
        return slice(0, n_latents)

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a named tensor that this process has."""
        return tensor

    def collect(self, name: str, tensor: Tensor) -> Tensor:
        """The whole named tensor on the first process (on the CPU if parts come from others); the own part on other processes."""
        return tensor

    def n_latents(self, here: int) -> int:
        """Number of latents in all processes, from the number in this process."""
        return here

    def largest(self, values_BK: Tensor, k: int) -> Tensor:
        """The values, with 0 where a value is not among the k of the largest magnitude of its row over all processes."""
        return values_BK

    def whole(self, part: Tensor) -> Tensor:
        """The sum over all latents, from the sum over the latents of this process. The gradient passes to the part unchanged."""
        return part

    def reduce(self, gradient: Parameters) -> Parameters:
        """The gradient of the whole loss, from the gradient of this process's part of the loss."""
        return gradient


ALONE = Group()


class _Together(Group):
    """The common base of both ways of dividing the work."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def first(self, work: Callable[[], _T]) -> _T:
        return collective.first(work)

    def total(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def total_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = self.total(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]))
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensor) for (name, tensor), part in zip(tensors.items(), parts)}

    def count(self, n: int) -> int:
        return int(self.total(torch.tensor(n)))

    def least(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def gather(self, *tensors: Tensor) -> list[list[Tensor]]:
        return collective.gather(*tensors)

    def _all_reduce(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        with answering():
            dist.all_reduce(tensor, how)
        return tensor


class Rows(_Together):
    """Each process has the whole dictionary and a part of every batch. All make the same step with the summed gradient.

    If a batch has fewer rows than there are processes, every process has the whole batch.
    """

    splits_rows = True

    def begin(self, n_rows: int) -> slice:
        own = slice(n_rows * self.rank // self.world, n_rows * (self.rank + 1) // self.world)
        if n_rows < self.world:
            own = slice(0, n_rows)
        self.copies = self.world if n_rows < self.world else 1
        self._n_rows = n_rows * self.copies
        self._share = (own.stop - own.start) / self._n_rows
        return own

    def sums(self, loss: Number, squares: Number, firings_F: Tensor) -> tuple[Number, Number, Tensor, Number]:
        own = _vector(loss * self._share, squares / self.copies, firings_F.sum())[:2]
        sums = self.total(torch.cat([own, firings_F / self.copies]))
        firings_F = sums[2:].round().long()
        return *_numbers(sums[:2]), firings_F, firings_F.sum()  # type: ignore[return-value]

    def n_rows(self, own: int) -> int:
        return self._n_rows

    @property
    def share(self) -> float:
        return self._share

    def variance(self, e_BE: Tensor) -> Tensor:
        e_BE = e_BE.double()
        means = self.total(torch.cat([e_BE.sum(0), e_BE.square().sum()[None]])) / self._n_rows
        return means[-1] - means[:-1].square().sum()

    def from_first_rows(self, number: Tensor | None) -> Tensor | None:
        known = (1.0, float(number)) if self.leads and number is not None else (0.0, 0.0)
        there, value = self.total(torch.tensor(known))
        return value if there else None

    def reduce(self, gradient: Parameters) -> Parameters:
        """The sum of the gradients of means over own rows, each in proportion to its rows.

        Of a matrix, only the rows of latents with a gradient in some process are sent, if that is less.
        """
        matrices = [name for name, grad in gradient.items() if has_latents(name) and grad.ndim > 1]
        touched_F = torch.stack([(gradient[name] != 0).flatten(1).any(1) for name in matrices]).any(0)
        rows_U = self._all_reduce(touched_F.byte(), dist.ReduceOp.MAX).nonzero()[:, 0]
        compact = len(rows_U) < _COMPACT * len(touched_F)
        sums = self.total_all({name: grad * self._share for name, grad in gradient.items() if name not in matrices})
        for name in matrices:
            total = self.total((gradient[name][rows_U] if compact else gradient[name]) * self._share)
            sums[name] = torch.zeros_like(gradient[name]).index_copy_(0, rows_U, total) if compact else total
        return Parameters({name: sums[name] for name in gradient})


class Latents(_Together):
    """Each process has every batch and a part of the latents, with their parameters and optimizer state.

    The prediction is the sum of the decoded parts of all processes. Biases and other parameters without a dimension of latents
    are equal in all processes, and only the first process adds them to the prediction.
    """

    splits_latents = True

    def __init__(self) -> None:
        super().__init__()
        self.has_biases = self.leads

    def sums(self, loss: Number, squares: Number, firings_F: Tensor) -> tuple[Number, Number, Tensor, Number]:
        sums = self.total(_vector(loss / self.world, squares / self.world, firings_F.sum()))
        loss, squares, firings = _numbers(sums)
        return loss, squares, firings_F, firings

    def n_latents(self, here: int) -> int:
        return self.count(here)

    def own_latents(self, n_latents: int) -> slice:
        n = n_latents // self.world
        return slice(n * self.rank, n * (self.rank + 1))

    def part(self, name: str, tensor: Tensor) -> Tensor:
        return tensor[self.own_latents(len(tensor))].clone() if has_latents(name) else tensor

    def collect(self, name: str, tensor: Tensor) -> Tensor:
        if not has_latents(name):
            return tensor
        own = tensor.detach().to("cpu").contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world)] if self.leads else None
        with answering():
            dist.gather(own, parts, dst=0)
        return own if parts is None else torch.cat(parts)

    def largest(self, values_BK: Tensor, k: int) -> Tensor:
        B, K = values_BK.shape
        own_Bk = values_BK.new_zeros(B, k)
        own_Bk[:, :K] = values_BK.detach()
        all_BN = torch.cat(collective.all_gather(own_Bk), dim=1)
        keep_BN = torch.zeros_like(all_BN).scatter_(1, all_BN.abs().topk(k, dim=1).indices, 1)
        return values_BK * keep_BN[:, k * self.rank :][:, :K]

    def whole(self, part: Tensor) -> Tensor:
        own = part.detach()
        return part + (self.total(own) - own)

    def reduce(self, gradient: Parameters) -> Parameters:
        """Parameters without a dimension of latents get gradients from the latents of all processes."""
        sums = self.total_all({name: grad for name, grad in gradient.items() if not has_latents(name)})
        return Parameters(gradient | sums)


def group(*, shard: bool = False) -> Group:
    """The group of all processes. They divide the rows of a batch or, with `shard`, the latents."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return Latents() if shard else Rows()


def _vector(*numbers: Number) -> Tensor:
    """A float64 vector of the numbers, on the device of the tensors among them."""
    place = next(number.device for number in numbers if isinstance(number, Tensor))
    return torch.stack([torch.as_tensor(number, dtype=torch.float64, device=place) for number in numbers])


def _numbers(vector: Tensor) -> list[Number]:
    """The entries of a vector. On a GPU they stay tensors, because reading them would wait for the device."""
    return list(vector) if vector.is_cuda else vector.tolist()
