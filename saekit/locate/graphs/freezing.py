"""Freezing what is not linear in a forward pass: attention patterns, the scales of norms, and gates.

A mode of PyTorch sees every function that a pass calls, so that freezing needs to know nothing of a model's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from saekit.lm.layout.attention import attention_pattern

_DETACHED = frozenset({"rsqrt", "sqrt", "softmax", "sigmoid", "tanh", "std", "norm", "vector_norm"})
"""Functions whose results are scales, patterns and gates. Activation functions of an MLP are not among them: what an MLP returns
is frozen as a whole."""


class RowsDoNotFit(Exception):
    """A frozen value was recorded with one row and cannot be used for several."""


class Frozen(TorchFunctionMode):
    """Within the block, patterns, scales of norms and gates are constants, so that a pass is linear between MLPs.

    Without a tape, the pass computes its own values, and no gradient flows through them. They are put on :attr:`tape`. With the
    tape of another pass of one row, the pass takes the values from it: this freezes values, not gradients.

    Args:
        tape: the constants of another pass, in the order in which that pass used them.

    Raises:
        RowsDoNotFit: (in the pass) the pass has several rows, and a constant cannot be repeated for them.
    """

    def __init__(self, tape: list[Tensor] | None = None) -> None:
        super().__init__()
        self.tape: list[Tensor] = [] if tape is None else tape
        self._replays, self._place = tape is not None, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        if name in ("layer_norm", "rms_norm") and args and isinstance(args[0], Tensor):
            return self._norm(name, *args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and (name in _DETACHED or _is_root(name, args, kwargs)):
            return self._constant(lambda: result)
        return result

    def _constant(self, make: Callable[[], Tensor]) -> Tensor:
        """The value of `make`, detached, or the one on the tape."""
        if not self._replays:
            self.tape.append(make().detach())
            return self.tape[-1]
        kept, fresh = self.tape[self._place], make()
        self._place += 1
        if kept.shape != fresh.shape and (kept.ndim != fresh.ndim or kept.shape[0] != 1 or kept.shape[1:] != fresh.shape[1:]):
            raise RowsDoNotFit
        return kept.expand_as(fresh)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is None and not is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        pattern = self._constant(lambda: attention_pattern(query, key, attn_mask, scale))
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return pattern @ value

    def _norm(
        self,
        name: str,
        x: Tensor,
        normalized_shape: Iterable[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        dims = tuple(range(-len(tuple(normalized_shape)), 0))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if name == "layer_norm":
            wide = wide - wide.mean(dims, keepdim=True)
            eps = 1e-5 if eps is None else eps
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scaled = wide * self._constant(lambda: (wide.square().mean(dims, keepdim=True) + eps).rsqrt())
        scaled = scaled if weight is None else scaled * weight
        return (scaled if bias is None else scaled + bias).to(x.dtype)


def _is_root(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a power is a square root or its reciprocal: another way to write the scale of a norm."""
    if name not in ("pow", "__pow__"):
        return False
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    return isinstance(exponent, float) and abs(exponent) == 0.5
