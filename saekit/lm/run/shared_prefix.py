"""Keys and values of the tokens before the first change, computed once and read by every changed run of a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm.layout.hook_points import find_input, find_output, replace_input
from saekit.lm.run.changes import Prepared
from saekit.lm.run.forward import RunnableModel
from saekit.lm.run.prefix import Recording

_CACHES = ("past_key_values", "layer_past", "past_key_value")
"""What blocks call the argument of their cache."""
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_BUCKETS = 8
_FEW = 64
"""Tokens that are computed without need rather than in a batch of their own."""


class KeysAndValues:
    """The keys and values of all blocks in an unchanged run of B rows of T tokens.

    No token sees a later one, so a run that changes tokens from column `first` on needs only the keys and values of the columns
    before. Whether the blocks of a model can be called like this is tried when the keys and values are made.

    Attributes:
        usable: calling the blocks on the later half of the columns gives what the recorded run has there, up to rounding.
    """

    def __init__(self, lm: RunnableModel, recording: Recording) -> None:
        self._lm, self._recording = lm, recording
        self._kept: list[list[tuple[Tensor, Tensor]]] = []
        self.usable = recording.replayable and recording.tokens_BT.shape[1] > 1 and self._try()

    def arguments(
        self, layer: int, rows: Tensor | None, first: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a block for columns from `first` on.

        Args:
            layer: the block.
            rows: (n,) the recorded row of each row; None: all of them.
            first: at least 1.
            args, kwargs: those for all columns, besides the block's input.
        """
        T = self._recording.tokens_BT.shape[1]
        block = self._lm.blocks[layer]
        args, kwargs = _cut(args, first, T), _cut(kwargs, first, T)
        columns = torch.arange(T, device=self._lm.device)
        mask = (columns <= columns[first:, None])[None, None]
        args, kwargs = _given(block, ("attention_mask",), mask, args, kwargs, only_none=True)
        return _given(block, _CACHES, _Prefix(self._kept[layer], rows, first), args, kwargs)

    def _try(self) -> bool:
        """Whether it works, with the keys and values of all blocks kept. The caller holds the model's lock."""
        recording = self._recording
        half = recording.tokens_BT.shape[1] // 2
        try:
            for layer, (args, kwargs) in enumerate(recording.calls):
                block, kept = self._lm.blocks[layer], _Keeper()
                expected = find_output(block(*args, **kwargs))
                filled = _given(block, _CACHES, kept, args, kwargs)
                find_output(block(*filled[0], **filled[1]))
                self._kept.append(kept.taken)
                where, x = find_input(args, kwargs)
                args, kwargs = replace_input(*self.arguments(layer, None, half, args, kwargs), where, x[:, half:])
                if not _close(find_output(block(*args, **kwargs)), expected[:, half:]):
                    return False
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a block raises, its runs begin with the first token
            return False
        return True


class _Keeper:
    """Stands in place of a block's cache and keeps what is put into it."""

    def __init__(self) -> None:
        self.taken: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.taken.append((key, value))
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _Prefix:
    """Stands in place of a block's cache that holds the columns before `first`."""

    def __init__(self, kept: Sequence[tuple[Tensor, Tensor]], rows: Tensor | None, first: int) -> None:
        self._kept, self._rows, self._first = iter(kept), rows, first

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, also = next(self._kept)
        return self._joined(before, key), self._joined(also, value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._first

    def _joined(self, kept: Tensor, new: Tensor) -> Tensor:
        """(n, heads, columns, d_head)"""
        before = kept[:, :, : self._first]
        before = before if self._rows is None else before[self._rows.to(kept.device)]
        return torch.cat([before, new], 2)


def _given(
    block: nn.Module,
    names: Sequence[str],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    only_none: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with a parameter of one of these names set; `only_none`: if the call has one and it is None.

    Raises:
        TypeError: the block has no such parameter.
    """
    known = list(inspect.signature(block.forward).parameters)
    name = next((each for each in names if each in known), None)
    if name is None:
        raise TypeError(f"{type(block).__name__} has no parameter {' or '.join(names)}.")
    place = known.index(name)
    now = args[place] if place < len(args) else kwargs.get(name)
    if only_none and now is not None:
        return args, kwargs
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, kwargs | {name: value}


def _cut(value: Any, first: int, T: int) -> Any:
    """Masks, positions and rotary tables without the queries before `first`."""
    if isinstance(value, Tensor):
        if value.ndim == 4 and value.shape[2] == T:
            return value[:, :, first:]
        if value.ndim in (2, 3) and value.shape[1] == T:
            return value[:, first:]
        return value[first:] if value.ndim == 1 and len(value) == T else value
    if isinstance(value, tuple):
        return tuple(_cut(item, first, T) for item in value)
    if isinstance(value, dict):
        return {key: _cut(item, first, T) for key, item in value.items()}
    return value


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    error = float((found - expected).abs().max()) / (float(expected.abs().max()) + 1e-9)
    return error <= _TOLERANCE.get(expected.dtype, 2e-2)


def first_column(variant: Prepared) -> int:
    """The earliest column that a variant changes; 0 where embeddings or patterns change, whose runs are of whole rows."""
    sites = [site for step in variant.steps for site in (step.space.site, step.space.site_out)]
    if variant.layer < 0 or any(site.kind == "pattern" for site in sites):
        return 0
    return min(int(step.columns.min()) for step in variant.steps if len(step.columns)) if variant.steps else 0


def by_first_column(variants: Sequence[Prepared], T: int) -> list[tuple[int, list[Prepared]]]:
    """Variants that run together, with the first column of each group. Within a group they keep their order.

    There are at most 8 groups. A group of its own must save more than a few tokens.
    """
    width = max(1, T // _BUCKETS)
    buckets: dict[int, list[Prepared]] = {}
    firsts = {id(each): first_column(each) for each in variants}
    for each in variants:
        buckets.setdefault(firsts[id(each)] // width, []).append(each)
    groups: list[tuple[int, list[Prepared]]] = []
    for _, some in sorted(buckets.items()):
        first = min(firsts[id(each)] for each in some)
        if groups and len(some) * (first - groups[-1][0]) <= _FEW:
            groups[-1][1].extend(some)
        elif not groups and len(some) * first <= _FEW:
            groups.append((0, some))
        else:
            groups.append((first, some))
    return groups
