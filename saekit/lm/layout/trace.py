"""One short forward pass in which every call of every module is kept: what the guess of an unknown model's layout reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import innermost, innermost_pass
from saekit.lm.layout.attention import attended, attention_pattern
from saekit.lm.layout.hook_points import find_input, find_output

_NAME = "saekit_trace"
TRACE_LENGTH = 6


@dataclass
class Call:
    """A call of a module in the pass."""

    path: str
    module: nn.Module
    taken: Tensor
    returned: Tensor
    begun: int
    ended: int
    """Calls are counted as they begin and as they end, by one counter."""
    length: int = 0
    """Number of values that it returned; 0 for a bare tensor."""
    changed: frozenset[str] = frozenset()
    """"in" or "out" where the tensor that it took in or returned was written into later."""


@dataclass
class AttentionCall:
    """A call of transformers' AttentionInterface."""

    query: Tensor
    """(B, H, T, d), after the rotary embedding; `key` and `value` have the key-value heads."""
    key: Tensor
    value: Tensor
    z: Tensor
    """(B, T, H, d) what the heads return."""
    plain: bool
    """It is softmax(scores) times the values, so that its pattern can be shown."""


@dataclass
class Trace:
    """All calls of one forward pass.

    Attributes:
        calls: the first call of each module by path, in the order in which they end.
        repeats: all later calls of modules.
        counts: how often each module was called.
        attention: by the path of the module that calls the AttentionInterface.
        logits: (B, T, V).
    """

    calls: dict[str, Call] = field(default_factory=dict)
    repeats: list[Call] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    attention: dict[str, AttentionCall] = field(default_factory=dict)
    logits: Tensor | None = None

    def inside(self, path: str) -> dict[str, Call]:
        """The calls of the modules within `path`, by their paths from there."""
        return {name[len(path) + 1 :]: call for name, call in self.calls.items() if name.startswith(path + ".")}


def longest_context(config: Any) -> int:
    """Most tokens in a context; a configuration without a limit, or with one below 1, sets none."""
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else sys.maxsize


def probe_tokens(vocab_size: int, max_context: int) -> Tensor:
    """(2, T) the token ids of the short passes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (2, min(TRACE_LENGTH, max_context)), generator=generator)


@torch.no_grad()
def trace(model: Any, tokens_BT: Tensor) -> Trace:
    """Run `model` once and keep what every module took in and returned. The caller holds the model's lock."""
    found, clock = Trace(), count()
    open_calls: dict[str, tuple[Tensor, int, Tensor]] = {}
    originals: dict[str, tuple[Tensor, Tensor]] = {}
    names = {module: name for name, module in model.named_modules() if name}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[module]
        found.counts[name] = found.counts.get(name, 0) + 1
        try:
            taken = find_input(args, kwargs)[1]
        except StopIteration:
            return
        # A copy, because some blocks scale or add in place.
        open_calls[name] = (taken.detach().clone(), next(clock), taken)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = names[module]
        begun = open_calls.pop(name, None)
        if begun is None:
            return
        try:
            returned = find_output(output)
        except (TypeError, LookupError):
            return
        if not isinstance(returned, Tensor):
            return
        length = 0 if isinstance(output, Tensor) else len(output)
        call = Call(name, module, begun[0], returned.detach().clone(), begun[1], next(clock), length)
        if name in found.calls:
            found.repeats.append(call)
        else:
            found.calls[name] = call
            originals[name] = begun[2], returned

    def attention(module: nn.Module, call: AttentionCall) -> None:
        found.attention.setdefault(names[module], call)

    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for module in names:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(innermost(_Watcher(attention)))
        stack.enter_context(_watched_attention(model))
        found.logits = model(input_ids=tokens_BT, use_cache=False).logits.detach()
    for name, (taken, returned) in originals.items():
        call = found.calls[name]
        sides = {"in": (taken, call.taken), "out": (returned, call.returned)}
        call.changed = frozenset(side for side, pair in sides.items() if not torch.equal(*pair))
    return found


@dataclass(eq=False)
class _Watcher:
    seen: Callable[[nn.Module, AttentionCall], None]


@contextmanager
def _watched_attention(model: Any) -> Iterator[None]:
    """Within the block, the models that let their attention be chosen use :func:`_attention`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import PreTrainedModel

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    before = {}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module._can_set_attn_implementation():
            before[id(module.config)] = (module.config, module.config._attn_implementation)
    try:
        for config, _ in before.values():
            config._attn_implementation_internal = _NAME
        yield
    finally:
        for config, name in before.values():
            config._attn_implementation_internal = name


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the model's own file, shown to the watcher."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise UnsupportedModel(f"{type(module).__name__} comes without an eager attention.")
    if attention_mask is None and getattr(module, "is_causal", True):  # the fused attentions need no mask that is only causal
        Q, K = query.shape[2], key.shape[2]
        attention_mask = torch.full((Q, K), torch.finfo(query.dtype).min).triu(K - Q + 1)[None, None].to(query)
    out, weights = own(module, query, key, value, attention_mask, **kwargs)
    settings = {name: kwargs.get(name) for name in ("scaling", "softcap")}
    plain = False
    if kwargs.get("position_bias") is None:
        pattern = attention_pattern(query, key, attention_mask, **settings, sinks_H=kwargs.get("s_aux"))
        ours = attended(pattern, value)
        rounding = 1e-3 if out.dtype in (torch.float32, torch.float64) else 3e-2
        plain = ours.shape == out.shape and bool(torch.allclose(ours, out, rtol=1e-2, atol=rounding * float(out.abs().max())))
    watcher = innermost_pass()
    if isinstance(watcher, _Watcher):
        watcher.seen(module, AttentionCall(query, key, value, out, plain))
    return out, weights
