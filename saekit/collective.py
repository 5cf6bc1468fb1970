"""Messages between the processes that torchrun started: torch.distributed with typed errors."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from saekit import processes
from saekit.errors import ParallelError

_PATIENCE = timedelta(minutes=30)  # to wait for another process; the first one measures and writes while others wait
_WORD = 8  # alignment in bytes, enough for a tensor of any type
_T = TypeVar("_T")


@contextmanager
def joined() -> Iterator[None]:
    """Within the context, the processes that torchrun started are connected, each with its own GPU. No effect for one process.

    Raises:
        ParallelError: the other processes cannot be reached.
    """
    if processes.world() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    with answering():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def connected() -> bool:
    """Whether this is one of several processes that are connected."""
    return dist.is_initialized() and dist.get_world_size() > 1


def first(work: Callable[[], _T]) -> _T:
    """Run `work` in the first process; all connected processes return its result, or raise its error."""
    if not connected():
        return work()
    result: Any = None
    failure: Exception | None = None
    leads = dist.get_rank() == 0
    if leads:
        try:
            result = work()
        except Exception as error:
            failure = error
    outcome = [result, _portable(failure)]
    with answering():
        dist.broadcast_object_list(outcome, src=0)
    if not leads:
        result, failure = outcome
    if failure is not None:
        raise failure
    return result


def gather(*tensors: Tensor) -> list[list[Tensor]]:
    """For each tensor, the tensors of all connected processes in the order of rank. Their lengths may differ.

    Sends two messages: the lengths of all tensors, then the bytes of all tensors.
    """
    raw = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    own = torch.cat([pad(each, (0, -len(each) % _WORD)) for each in raw])
    lengths = torch.tensor([*map(len, tensors), len(own)], device=own.device)
    all_lengths = torch.stack(all_gather(lengths)).tolist()
    messages = all_gather(pad(own, (0, max(each[-1] for each in all_lengths) - len(own))))
    gathered: list[list[Tensor]] = [[] for _ in tensors]
    for message, found in zip(messages, all_lengths):
        at = 0
        for tensor, length, parts in zip(tensors, found, gathered):
            size = length * math.prod(tensor.shape[1:]) * tensor.itemsize
            parts.append(message[at : at + size].view(tensor.dtype).view(length, *tensor.shape[1:]))
            at += size + -size % _WORD
    return gathered


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all connected processes, all of one shape, in the order of rank."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with answering():
        dist.all_gather(parts, tensor)
    return parts


@contextmanager
def answering() -> Iterator[None]:
    """Errors of torch.distributed in the block become typed ones.

    Raises:
        ParallelError: another process has ended or does not answer.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # all that torch.distributed raises
        raise ParallelError(
            f"Another process of this run has ended or does not answer ({str(error).splitlines()[0]}).",
            "It says why; the same command goes on from the last checkpoint.",
        ) from error


def _portable(error: Exception | None) -> Exception | None:
    """An error that can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ParallelError(f"The first process failed: {type(error).__name__}: {error}.")
    return error
