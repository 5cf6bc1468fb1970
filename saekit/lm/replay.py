"""Start at a layer: what every block was called with, recorded once and called again with other activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from saekit.errors import ConfigError
from saekit.lm.taps import find_input, find_output, replace_input

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel


@dataclass
class Recording:
    """One forward pass, block by block.

    Attributes:
        tokens_BT, mask_BT: what it ran on.
        calls: each block's (args, kwargs).
    """

    tokens_BT: Tensor
    mask_BT: Tensor | None
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def resid_pre(self, layer: int) -> Tensor:
        """(B, T, d_model) what went into block `layer`."""
        return find_input(*self.calls[layer])[1]


def replay(lm: LanguageModel, recording: Recording, layer: int, resid_pre: Tensor) -> Tensor:
    """Run blocks `layer`.. on `resid_pre` (K * B, T, d_model), row r in the place of recorded row r % B; (K * B, T, d_model).

    Raises:
        ConfigError: the batch is no multiple of the recorded one, or lengths differ.
    """
    B, T = recording.tokens_BT.shape
    if resid_pre.ndim != 3 or resid_pre.shape[1] != T or resid_pre.shape[0] % B:
        raise ConfigError(
            f"resid_pre {tuple(resid_pre.shape)} does not fit a recording of {B} rows and {T} tokens.",
            f"Give (K * {B}, {T}, d_model).",
        )
    times = resid_pre.shape[0] // B
    x = resid_pre
    for block, (args, kwargs) in zip(lm.blocks[layer:], recording.calls[layer:]):
        where, recorded = find_input(args, kwargs)
        if times > 1 and B > 1:
            args = tuple(_repeat(value, B, times) for value in args)
            kwargs = {key: _repeat(value, B, times) for key, value in kwargs.items()}
        args, kwargs = replace_input(args, kwargs, where, x.to(recorded.device))
        x = find_output(block(*args, **kwargs))
    return x


def _repeat(value: Any, B: int, times: int) -> Any:
    # Batched arguments are masks and rotary tables; what has one row for all broadcasts.
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == B:
        return value.repeat(times, *(1 for _ in value.shape[1:]))
    if isinstance(value, tuple):
        return tuple(_repeat(item, B, times) for item in value)
    return value


class Recorder:
    """Collects blocks' arguments as pre-hooks."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))
