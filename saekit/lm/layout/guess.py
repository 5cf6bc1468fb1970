"""A guess of an unknown model's layout, from the calls of its modules in one short forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saekit.errors import UnsupportedModel
from saekit.lm.exclusive import lock_of
from saekit.lm.layout.block import BlockLayout, Readout
from saekit.lm.layout.families import PATHS_HINT, Family, submodule
from saekit.lm.layout.guess_block import BlockGuess
from saekit.lm.layout.hook_points import TensorView
from saekit.lm.layout.offload import device_of
from saekit.lm.layout.places import is_projection, same
from saekit.lm.layout.tail import Tail
from saekit.lm.layout.trace import Call, Trace, longest_context, probe_tokens, trace


class Guess(NamedTuple):
    """The layout of a model, as found by structure."""

    family: Family
    blocks: list[BlockLayout]
    readout: Readout
    d_model: int
    embedding_copied: bool
    stream: TensorView
    embedded: TensorView


def guess_layout(model: Any, paths: Mapping[str, Any], who: str) -> Guess:
    """The layout of `model`. The layout checks decide whether the guess is right.

    Args:
        model: a causal language model.
        paths: entries of the path table that are known; `layers` and `final` are used here.
        who: what messages call the model.

    Raises:
        UnsupportedModel: the model has no residual stream: no list of blocks that each take in and return (B, T, d_model) once,
            or no way from the last block to the logits.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    tokens_BT = probe_tokens(embedding.num_embeddings, longest_context(config))
    with lock_of(embedding):
        seen = trace(model, tokens_BT.to(device_of(embedding)))
    layers = paths.get("layers") or _layers(model, seen, tokens_BT, who)
    blocks = [f"{layers}.{name}" for name, _ in model.get_submodule(layers).named_children()]
    _check_blocks(seen, blocks, tokens_BT, who)
    table = _table(f"{model.config.model_type} by structure", layers)
    first, last = seen.calls[blocks[0]], seen.calls[blocks[-1]]
    view = stream_view(first.taken, tokens_BT) or TensorView()
    final, readout = _readout(model, seen, last, config, who)
    if not _gives_logits(readout, view.get(last.returned, *tokens_BT.shape), seen):
        modules, lengths = [seen.calls[path].module for path in blocks], [seen.calls[path].length for path in blocks]
        tail = Tail(model, modules, lengths, view)
        if _gives_logits(tail, view.get(last.returned, *tokens_BT.shape), seen):
            final, readout = (), Readout((), tail, readout.projection)
        elif "final" not in paths:
            raise UnsupportedModel(
                f"{who} has no residual stream: its logits do not follow from what its last block, {blocks[-1]}, returns.",
                PATHS_HINT,
            )
    if "final" in paths:
        final = tuple(paths["final"])
    table = Family(**{**vars(table), "final": final})
    once = Trace({path: call for path, call in seen.calls.items() if seen.counts[path] == 1}, attention=seen.attention)
    layouts = [BlockGuess(once, path, n, config, table, view).layout() for n, path in enumerate(blocks)]
    embedded = [call for call in seen.calls.values() if call.module is embedding]
    copied = any("out" in call.changed for call in embedded)
    embedded_view = (stream_view(embedded[0].returned, tokens_BT) if embedded else None) or TensorView()
    d_model = view.get(first.taken, *tokens_BT.shape).shape[-1]
    return Guess(table, layouts, readout, d_model, copied, view, embedded_view)


@torch.no_grad()
def _gives_logits(readout: Readout | Tail, resid_BTD: Tensor, seen: Trace) -> bool:
    """Whether a readout gives the logits of the pass; two tokens are enough to tell."""
    try:
        logits = readout(resid_BTD[:1, -2:])
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False
    return seen.logits is not None and _close(logits, seen.logits[:1, -2:])


def _table(name: str, layers: str) -> Family:
    """A table without paths in a block."""
    empty: dict[str, Any] = dict.fromkeys(("attn", "o", "q", "k", "v", "mlp_in", "down", "attn_out", "mlp_out", "mid"), "")
    return Family(name=name, layers=layers, final=(), **empty)


def _layers(model: Any, seen: Trace, tokens_BT: Tensor, who: str) -> str:
    """The list of called modules with the most parameters, whose elements take in and return activations of every token."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and _is_stack(seen, name, module, tokens_BT)
    }
    if not lists:
        raise UnsupportedModel(
            f"{who} has no residual stream: no list of blocks that each take in and return one vector a token.",
            PATHS_HINT,
        )
    return max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))


def _is_stack(seen: Trace, name: str, module: nn.Module, tokens_BT: Tensor) -> bool:
    calls = [seen.calls.get(f"{name}.{child}") for child, _ in module.named_children()]
    return all(call is not None and _is_stream(call, tokens_BT) for call in calls)


def _is_stream(call: Call, tokens_BT: Tensor) -> bool:
    return call.returned.shape == call.taken.shape and stream_view(call.taken, tokens_BT) is not None


def stream_view(x: Tensor, tokens_BT: Tensor) -> TensorView | None:
    """How the residual stream lies in what a block takes in: (B, T, d), (T, B, d), or parts in a dimension of their own."""
    if x.ndim == 3 and x.shape[:2] == tokens_BT.T.shape:
        return TensorView(tokens_first=True)
    if x.shape[:2] == tokens_BT.shape and x.ndim in (3, 4):
        return TensorView(streams="last" if x.ndim == 4 else "")
    return TensorView(streams="first") if x.ndim == 4 and x.shape[1:3] == tokens_BT.shape else None


def _check_blocks(seen: Trace, blocks: list[str], tokens_BT: Tensor, who: str) -> None:
    for path in blocks:
        call, count = seen.calls.get(path), seen.counts.get(path, 0)
        if call is None or count != 1:
            raise UnsupportedModel(
                f"{who} has no plain stack of blocks: {path} runs {count} times in a forward pass.", PATHS_HINT
            )
        if not _is_stream(call, tokens_BT):
            raise UnsupportedModel(
                f"{who} has no residual stream: {path} takes in {tuple(call.taken.shape)} and returns "
                f"{tuple(call.returned.shape)} for tokens {tuple(tokens_BT.shape)}.",
                PATHS_HINT,
            )


def _readout(model: Any, seen: Trace, last: Call, config: Any, who: str) -> tuple[tuple[str, ...], Readout]:
    """The paths of the modules between the last block and the head, and how logits are made."""
    assert seen.logits is not None
    head = projection = _head(model, seen, who)
    chain: list[str] = []
    streams = [last.returned]
    every = [*seen.calls.values(), *seen.repeats]  # a norm may have been called before the blocks too
    after = [call for call in every if call.begun > last.ended and not _holds(call.path, head.path)]
    after.sort(key=lambda call: call.begun)
    while found := [call for call in after if call.begun < head.begun and same(_as(call.taken, streams[-1]), streams[-1])]:
        chain.append(found[0].path)
        streams.append(found[0].returned)
        after = [call for call in after if call.begun > found[0].ended]
    before = _ratio(_as(head.taken, streams[-1]), streams[-1])
    if before == 1 and not same(_as(head.taken, streams[-1]), streams[-1]):
        # BERT's heads compute before their projection, so the whole module is the head.
        outer = [call for call in seen.calls.values() if call.begun > last.ended and _holds(call.path, head.path)]
        for n in reversed(range(len(streams))):
            whole = [call for call in outer if same(_as(call.taken, streams[n]), streams[n])]
            if whole and whole[0].returned.shape == head.returned.shape:
                chain, head = chain[:n], whole[0]
                break
    modules = tuple(module for path in chain if (module := submodule(model, path)) is not None)
    scale, softcap = _logits(seen.logits, head.returned, config)
    return tuple(chain), Readout(modules, head.module, projection.module, before, scale, softcap)


def _head(model: Any, seen: Trace, who: str) -> Call:
    """The projection that makes the logits."""
    module = model.get_output_embeddings()
    for call in seen.calls.values():
        if call.module is module:
            return call
    made = [call for call in seen.calls.values() if is_projection(call.module) and call.returned.shape == seen.logits.shape]  # type: ignore[union-attr]
    if not made:
        raise UnsupportedModel(f"{who} has no module that makes its logits.", PATHS_HINT)
    return made[-1]


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(like.shape) if x.numel() == like.numel() else x


def _ratio(x: Tensor, part: Tensor) -> float:
    """The number that `part` is multiplied by to give x; 1 where there is none, which the layout checks refuse."""
    if x.shape != part.shape:
        return 1.0
    a, b = part.double().flatten().to(x.device), x.double().flatten()
    factor = float(a @ b / (a @ a).clamp_min(1e-30))
    return 1.0 if abs(factor - 1) < 1e-4 or not _close((factor * a).to(x.dtype), x.flatten()) else factor


def _close(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, more strictly than :func:`same`: a soft cap changes small logits little."""
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-9}.get(right.dtype, 2e-2)
    return left.shape == right.shape and float((left.to(right.device) - right).abs().max()) <= tolerance * float(
        right.abs().max()
    )


def _logits(logits: Tensor, made: Tensor, config: Any) -> tuple[float, float]:
    """The factor and the soft cap between the head and the logits."""
    made = made.to(logits.device)
    if made.shape != logits.shape:
        return 1.0, 0.0
    scale = _ratio(logits, made)
    if scale != 1 or _close(made, logits):
        return scale, 0.0
    caps = {value for name, value in config.to_dict().items() if "cap" in name and isinstance(value, int | float) and value}
    for cap in sorted(caps, key=float):
        inside = logits.double().abs() < 0.9 * cap
        inner = cap * torch.atanh(logits.double()[inside] / cap)
        a = made.double()[inside]
        scale = float(a @ inner / (a @ a).clamp_min(1e-30))
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        if _close(cap * torch.tanh(scale * made / cap), logits):
            return scale, float(cap)
    return 1.0, 0.0
