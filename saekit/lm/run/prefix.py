"""Starting at a layer: the arguments of every block are recorded once, and the blocks are called again with other activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saekit.errors import ConfigError
from saekit.lm.exclusive import is_innermost
from saekit.lm.layout.hook_points import find_input, find_output, replace_input


@dataclass
class Recording:
    """The calls of all blocks in one forward pass.

    Attributes:
        tokens_BT, mask_BT: its input; the mask is None if there were no pads.
        calls: (args, kwargs) of each block.
        replayable: blocks can be called again alone; else only their inputs are kept, and a pass runs the whole model.
        edits: digests of the edits of weights that were on.
    """

    tokens_BT: Tensor
    mask_BT: Tensor | None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    replayable: bool = True
    edits: tuple[str, ...] = ()

    def start(self, layer: int, resid_pre: Tensor | None) -> Tensor:
        """The input of block `layer`: the one given, or the recorded one."""
        return self.resid_pre(layer) if resid_pre is None else resid_pre

    def resid_pre(self, layer: int) -> Tensor:
        """(B, T, d_model) the input of block `layer`."""
        return find_input(*self.calls[layer])[1]

    def expanded(self, resid_pre: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask of every row of `resid_pre` (K * B, T, d_model).

        Raises:
            ConfigError: its batch is not a multiple of the recorded batch, or the lengths differ.
        """
        if resid_pre is None:
            return self.tokens_BT, self.mask_BT
        B, T = self.tokens_BT.shape
        if resid_pre.ndim != 3 or resid_pre.shape[1] != T or resid_pre.shape[0] % B:
            raise ConfigError(
                f"resid_pre {tuple(resid_pre.shape)} does not fit a recording of {B} rows of {T} tokens.",
                f"Give (K * {B}, {T}, d_model).",
            )
        times = resid_pre.shape[0] // B
        return self.tokens_BT.repeat(times, 1), None if self.mask_BT is None else self.mask_BT.repeat(times, 1)


def replay(blocks: Sequence[nn.Module], recording: Recording, layer: int, resid_pre: Tensor | None) -> Tensor:
    """Output of the last block, in the shape of `resid_pre`, when the blocks from `layer` on run on it.

    Args:
        resid_pre: (K * B, T, d_model); row r takes the place of recorded row r % B. None: the recorded input.
    """
    x = recording.start(layer, resid_pre)
    B = recording.tokens_BT.shape[0]
    times = x.shape[0] // B
    for block, (args, kwargs) in zip(blocks[layer:], recording.calls[layer:]):
        where, recorded = find_input(args, kwargs)
        if times > 1 and B > 1:  # a single recorded row is broadcast
            args, kwargs = _repeat(args, B, times), _repeat(kwargs, B, times)
        args, kwargs = replace_input(args, kwargs, where, x.to(recorded.device))
        x = find_output(block(*args, **kwargs))
    return x


def _repeat(value: Any, B: int, times: int) -> Any:
    """Repeat masks and rotary tables that have a row per sequence."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == B:
        return value.repeat(times, *(1 for _ in value.shape[1:]))
    if isinstance(value, tuple):
        return tuple(_repeat(item, B, times) for item in value)
    if isinstance(value, dict):
        return {key: _repeat(item, B, times) for key, item in value.items()}
    return value


def divisible(
    record: Callable[[Tensor, Tensor | None], Recording], tokens_BT: Tensor, mask_BT: Tensor | None
) -> Recording | None:
    """A recording whose arguments of B rows have a row for each sequence; None where one has B rows for another reason.

    A bias with a row for each head looks like an argument of as many sequences. A recording of one sequence tells them apart.
    """
    recording, B = record(tokens_BT, mask_BT), len(tokens_BT)
    if B == 1:
        return recording
    one = record(tokens_BT[:1], None if mask_BT is None else mask_BT[:1])
    return None if any(_has_sized(call, B) for call in one.calls) else recording


def _has_sized(value: Any, size: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 1 and value.shape[0] == size
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return any(_has_sized(item, size) for item in parts)


class Recorder:
    """A pre-hook that keeps the arguments of blocks, in the order of their calls.

    Args:
        owner: the pass to record; calls from other passes and threads are not kept.
    """

    def __init__(self, owner: object) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._owner = owner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_innermost(self._owner):
            self.calls.append((args, kwargs))
