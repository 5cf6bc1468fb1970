"""Attention patterns: while one is wanted, transformers' AttentionInterface runs an attention that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import innermost_pass
from saekit.lm.layout.attention import AttentionCall, attended
from saekit.lm.layout.layout import ModelLayout

_NAME = "saekit_pattern"
Weigh = Callable[[AttentionCall], Tensor]
"""Takes what an attention function is given and returns the pattern (B, H, Q, K)."""
_weights: ContextVar[Mapping[nn.Module, Weigh]] = ContextVar("weights", default={})  # noqa: B039, nothing changes it


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention; query is (B, H, Q, d), key and value are (B, Hkv, K, d)."""
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModel("Attention with a position bias has no pattern here.")
    # These belong to the pass of this thread: other threads may be here at the same time with other models.
    owner = innermost_pass()
    if (inputs := getattr(owner, "attention_inputs", None)) is not None:
        query, key, value = inputs(module, query, key, value)
    call = AttentionCall(query, key, attention_mask, scaling, softcap, kwargs.get("s_aux"))
    weigh = _weights.get().get(module)
    pattern = call.pattern() if weigh is None else weigh(call)
    visit = getattr(owner, "patterns", {}).get(module)
    if visit is not None:
        pattern = visit(pattern)
    return attended(pattern, value), pattern


@contextmanager
def weighed_by(functions: Mapping[nn.Module, Weigh]) -> Iterator[None]:
    """Within the block, passes of this thread that read or edit a pattern compute those of some attention modules like this."""
    token = _weights.set(functions)
    try:
        yield
    finally:
        _weights.reset(token)


@contextmanager
def own_attention(lm: ModelLayout, name: str) -> Iterator[None]:
    """Within the block, for a pass inside an edit of a pattern, the model computes attention by `name` again."""
    owner = _owner(lm)
    owner.set_attn_implementation(name)
    try:
        yield
    finally:
        owner.set_attn_implementation(_NAME)


@contextmanager
def patterns_through(lm: ModelLayout) -> Iterator[str]:
    """Within the block, attention passes its patterns through the `patterns` of the innermost pass.

    Yields the name of the model's own attention.

    The caller holds the model's lock, because all threads share the configuration that chooses the attention.

    Raises:
        UnsupportedModel: the model does not let its attention be chosen.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    owner = _owner(lm)
    before = owner.config._attn_implementation
    try:
        owner.set_attn_implementation(_NAME)
        if owner.config._attn_implementation != _NAME:
            raise UnsupportedModel(
                f"{lm.name} computes its attention itself, so its patterns cannot be reached through AttentionInterface.",
                "Name a module that returns them as `pattern` in the path table.",
            )
        yield before
    finally:
        if owner.config._attn_implementation == _NAME:
            owner.set_attn_implementation(before)


def _owner(lm: ModelLayout) -> Any:
    """The innermost transformers model around the blocks, whose configuration chooses their attention."""
    from transformers.modeling_utils import PreTrainedModel

    return next(
        module
        for name, module in reversed(list(lm.model.named_modules()))
        if isinstance(module, PreTrainedModel) and (not name or lm.family.layers.startswith(name + "."))
    )
