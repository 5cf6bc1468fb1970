"""Hook points: how a site is read from, and written to, the tensor that a module takes in or returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TensorView:
    """A site's part of a module's tensor, as (B, T, d), or (B, T, heads, d_head) where `heads` is set.

    Attributes:
        heads, d_head: the shape of one token; without heads a token is flat.
        starts: where the numbers of each head begin in the last dimension, where a tensor holds more than one site; () if
            the tensor is the site.
        heads_first: the tensor is (B, heads, T, d_head).
        streams: for a residual stream of several parts: "first" in (parts, B, T, d), "last" in (B, T, parts, d). A token is flat.
        tokens_first: the tensor is (T, B, d).
    """

    heads: int = 0
    d_head: int = 0
    starts: tuple[int, ...] = ()
    heads_first: bool = False
    streams: Literal["", "first", "last"] = ""
    tokens_first: bool = False

    def get(self, raw: Tensor, B: int, T: int) -> Tensor:
        """The site's values, which are a view of `raw` where they lie in one piece; `raw` may have B and T as one dimension."""
        if self.streams:
            return (raw.permute(1, 2, 0, 3) if self.streams == "first" else raw).flatten(2)
        if self.tokens_first:
            return raw.transpose(0, 1)
        if raw.ndim == 2 or self.starts:
            raw = raw.view(B, T, -1)
        if not self.heads:
            return raw
        if raw.ndim == 4:
            return raw.transpose(1, 2) if self.heads_first else raw
        if self.starts:
            raw = raw[..., self._index]
        return raw.unflatten(-1, (self.heads, self.d_head))

    def put(self, raw: Tensor, x: Tensor) -> Tensor:
        """`raw` with the site's values replaced by `x`."""
        if self.streams:
            x = x.unflatten(2, (-1, raw.shape[-1]))
            return x.permute(2, 0, 1, 3).contiguous() if self.streams == "first" else x
        if self.tokens_first:
            return x.transpose(0, 1).contiguous()
        if self.starts:
            new = raw.clone(memory_format=torch.contiguous_format)
            new.view(*x.shape[:2], -1)[..., self._index] = x.flatten(2)
            return new
        if raw.ndim == 4 and self.heads_first:
            return x.transpose(1, 2)
        return x.reshape(raw.shape)

    @property
    def _index(self) -> slice | Tensor:
        first, width = self.starts[0], self.heads * self.d_head
        if self.starts == tuple(range(first, first + width, self.d_head)):
            return slice(first, first + width)
        return (torch.tensor(self.starts)[:, None] + torch.arange(self.d_head)).flatten()


Visit = Callable[[Tensor], Tensor]
"""Takes the tensor at a site and returns the one to go on with: the same object where nothing is changed."""


class HookPoint(NamedTuple):
    """A module, the side of it where the site is, and the site's part of the tensor there."""

    module: nn.Module
    side: Literal["in", "out"]
    view: TensorView = TensorView()
    in_place: bool = False
    """Write into the tensor itself. The module of `resid_mid` is the MLP's norm, and its input is also added to the MLP's output:
    only a write into that one tensor reaches both, bit for bit."""
    copied: bool = False
    """The model writes into the tensor later, so a read must copy it."""
    attach: Callable[[Visit], Any] | None = None
    """How to hook a site inside the module: it takes the function to call with the site's tensor, which returns the tensor to go
    on with, and returns a handle with `remove()`."""


def find_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
    """The activations among a module's arguments, after the index or name of the argument."""
    if args and isinstance(args[0], Tensor):
        return 0, args[0]
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states", kwargs["hidden_states"]
    return next((key, value) for key, value in kwargs.items() if isinstance(value, Tensor))


def replace_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], where: int | str, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the activations replaced."""
    if isinstance(where, int):
        return (*args[:where], new, *args[where + 1 :]), kwargs
    return args, {**kwargs, where: new}


def find_output(output: Any) -> Tensor:
    """A module's activations: its output, or the first of its outputs (attention modules, GPT-J's blocks)."""
    return output if isinstance(output, Tensor) else output[0]


def replace_output(output: Any, new: Tensor) -> Any:
    """The output with the activations replaced."""
    return new if isinstance(output, Tensor) else (new, *output[1:])
