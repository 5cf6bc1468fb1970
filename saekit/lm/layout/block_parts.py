"""The parts of one block: its attention or other token mixers, its MLP, and what else it calls."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from saekit.lm.layout.block import BlockLayout
from saekit.lm.layout.families import Family
from saekit.lm.layout.hook_points import TensorView
from saekit.lm.layout.trace import AttentionCall, Call, Trace

_MIXER = re.compile(r".*(attn|attention|mixer|mamba|conv|ssm|lstm|recurrent|temporal|delta).*", re.I)
_MLP = re.compile(r".*mlp.*|.*feed_?forward.*|ffn?|.*moe.*|.*expert.*", re.I)
_MLP_CLASS = re.compile(r".*(mlp|moe|moeblock|experts|feedforward|ffn)", re.I)


class BlockParts:
    """The calls within one block, sorted into parts.

    Args:
        seen: a trace of the whole model.
        path: of the block.
        layer: its number.
        config: the text model's configuration.
        table: the model's table, without paths in a block.
        stream: how the residual stream lies in what the block takes in.
    """

    def __init__(self, seen: Trace, path: str, layer: int, config: Any, table: Family, stream: TensorView) -> None:
        self._path, self._layer, self._config = path, layer, config
        self._whole = seen.calls[path]
        self._pre, self._post = self._whole.taken, self._whole.returned
        self._stream = stream
        if stream.streams:  # each part of the stream is as wide as what the branches return
            self._pre = self._pre[0] if stream.streams == "first" else self._pre[:, :, 0]
        self._calls = seen.inside(path)
        self._attention = {name[len(path) + 1 :]: call for name, call in seen.attention.items() if name.startswith(path + ".")}
        branches = self._branches(self._whole.module, "")
        self._mixers = [call for call in branches if self._kind(call) in ("attention", "mixer")]
        self._mixers.sort(key=lambda call: self._kind(call) != "attention")
        self._mlps = [call for call in branches if self._kind(call) == "mlp"]
        others = [call for call in branches if self._kind(call) == "other"]
        if not self._mlps:  # fc1 and fc2 are the block's own
            after = self._mixers[0].ended if self._mixers else 0
            self._mlps = [call for call in others if call.begun > after]
            others = [call for call in others if call not in self._mlps]
        self._others = others
        self._out = BlockLayout(table)

    def _changed(self, module: str) -> frozenset[str]:
        call = self._calls.get(getattr(self._out.paths, module, module)) if module != "block" else self._whole
        return frozenset() if call is None else call.changed

    def _branches(self, module: nn.Module, path: str) -> list[Call]:
        """The modules with matrices that the block calls itself."""
        found: list[Call] = []
        for name, child in module.named_children():
            where = f"{path}.{name}" if path else name
            call = self._calls.get(where)
            if call is None:
                found += self._branches(child, where)
            elif has_matrix(child):
                found.append(call)
        return sorted(found, key=lambda call: call.begun)

    def _kind(self, call: Call) -> str:
        name, kind = self._name(call).rpartition(".")[2], type(call.module).__name__
        if self._attention_in(call):
            return "attention"
        # A class may be named after a model with experts, so only its end says what it is.
        if _MLP.fullmatch(name) or _MLP_CLASS.fullmatch(kind):
            return "mlp"
        return "mixer" if _MIXER.fullmatch(name) or _MIXER.fullmatch(kind) else "other"

    def _name(self, call: Call) -> str:
        """The call's path in the block."""
        return call.path[len(self._path) + 1 :]

    def _attention_in(self, call: Call) -> tuple[str, AttentionCall] | None:
        name = self._name(call)
        return next(((path, each) for path, each in self._attention.items() if path == name or path.startswith(name + ".")), None)

    def _wide(self, call: Call) -> bool:
        return call.returned.numel() == self._pre.numel()

    def _like(self, x: Tensor) -> Tensor:
        return x.reshape(self._pre.shape)

    def _set(self, **entries: Any) -> None:
        self._out.paths = replace(self._out.paths, **entries)

    def _alternatives(self, branch: Call) -> list[str]:
        """Modules whose output may be what a branch adds: the branch, its last projections, the norms after it."""
        name = self._name(branch)
        inner = [path for path, call in self._calls.items() if path.startswith(name + ".") and self._wide(call)]
        after = {path: call for path, call in self._calls.items() if "." not in path and call.begun > branch.ended}
        norms = [path for path, call in after.items() if self._wide(call) and not has_matrix(call.module)]
        own = [name] if self._wide(branch) else []
        return [*own, *reversed(inner[-3:]), *norms, ""]


def has_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies, and is not only a norm or an activation."""
    return any(parameter.ndim > 1 for parameter in module.parameters())
