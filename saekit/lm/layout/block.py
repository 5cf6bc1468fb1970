"""One block of a model: where its sites are, their sizes, and why others are absent. The blocks of one model may differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from saekit.lm.layout.experts import Experts
from saekit.lm.layout.families import Family, require, submodule
from saekit.lm.layout.hook_points import TensorView
from saekit.lm.layout.sums import Scale
from saekit.names.site import KINDS


@dataclass
class BlockLayout:
    """The sites of one block.

    Attributes:
        paths: the path table; entries are empty where this block has no such module.
        sizes: n_heads, n_kv_heads, d_head (of v and heads), d_qk (of q and k), d_ffn; those that the block has.
        views: how q, k, v and heads lie in the tensors of their modules.
        scales: by kind, the factors with which vectors at attn_out and mlp_out, and the outputs of the projections of heads and
            neurons, are added to resid_post; "resid_pre" is the factor of the block's input. Factors of 1 are left out.
        mid_scales: the factors of resid_pre and attn_out in resid_mid.
        others: modules whose outputs the block adds besides attn_out and mlp_out.
        copied: kinds of sites whose tensors the block writes into later, so that a read must copy them.
        absent: by kind of site, why this block lacks it.
        experts: its experts, if it has any; found by :class:`saekit.lm.layout.layout.ModelLayout`.
    """

    paths: Family
    sizes: dict[str, int] = field(default_factory=dict)
    views: dict[str, TensorView] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    mid_scales: tuple[Scale, Scale] = (1.0, 1.0)
    others: tuple[str, ...] = ()
    copied: frozenset[str] = frozenset()
    absent: dict[str, str] = field(default_factory=dict)
    experts: Experts | None = None

    def scale(self, kind: str) -> Scale:
        """The factor with which `kind` reaches resid_post."""
        return self.scales.get(kind, 1.0)

    def add_experts(self, experts: Experts) -> None:
        """Take in the experts of the block."""
        self.experts = experts
        self.absent = {**experts.absent, **self.absent}
        if experts.n_experts:
            self.sizes |= {"n_experts": experts.n_experts, "d_expert": experts.d_expert}

    def lacks(self, kind: str, block: nn.Module) -> str | None:
        """Why this block lacks a kind of site; None if it has it."""
        if kind in self.absent:
            return self.absent[kind]
        row = KINDS[kind]
        if row.hook_point is not None or row.module in ("block", "embedding") or kind == "pattern":
            return None
        path = getattr(self.paths, row.module, None)
        if path == "":
            return row.lacking or f"its path table has no {row.module!r}"
        if path is None and submodule(block, row.module) is None:
            return f"its blocks have no module {row.module!r}"
        return None

    def changed(self, entries: Mapping[str, Any], block: nn.Module, config: Any) -> BlockLayout:
        """This layout with some entries of its path table replaced."""
        table = replace(self.paths, **entries)
        new = table_layout(table, block, config)
        kept = {kind: why for kind, why in self.absent.items() if getattr(self.paths, KINDS[kind].module, "") == ""}
        kept = {kind: why for kind, why in kept.items() if not getattr(table, KINDS[kind].module, "")}
        views = new.views if entries.keys() & {"q", "k", "v", "o", "fused", "heads_first"} else self.views
        return replace(self, paths=table, sizes={**self.sizes, **new.sizes}, views=views, absent=kept)


def table_layout(table: Family, block: nn.Module, config: Any) -> BlockLayout:
    """The layout of a block under a path table.

    Raises:
        UnsupportedModel: the block lacks a module that the table names.
    """
    layout = BlockLayout(table)
    if table.o:
        _attention(layout, block, config)
    if table.down:
        layout.sizes["d_ffn"] = _in_features(require(block, table.down, table, "down"))
    return layout


def _attention(layout: BlockLayout, block: nn.Module, config: Any) -> None:
    table = layout.paths
    # From the projections: neither d_model / n_heads nor the configuration is right for every model.
    H = int(config.num_attention_heads)
    d = _in_features(require(block, table.o, table, "o")) // H
    kv = _out_features(require(block, table.v, table, "v")) // d
    Hkv = (kv - H) // 2 if table.fused else kv
    layout.sizes |= {"n_heads": H, "n_kv_heads": Hkv, "d_head": d}
    layout.views["heads"] = TensorView(H, d)
    for n, (kind, heads) in enumerate({"q": H, "k": Hkv, "v": Hkv}.items()):
        starts: tuple[int, ...] = ()
        if table.fused == "interleaved":
            starts = tuple((3 * head + n) * d for head in range(heads))
        elif table.fused == "concat":
            starts = tuple(((0, H, H + Hkv)[n] + head) * d for head in range(heads))
        layout.views[kind] = TensorView(heads, d, starts, table.heads_first and kind != "v")


@dataclass(frozen=True)
class Readout:
    """How the residual stream after the last block becomes logits.

    logits = cap(scale * head(before * norms(resid_post))), where cap(x) is softcap * tanh(x / softcap). `projection` is the
    part of the head that holds its matrix; in most models it is the head.
    """

    final: tuple[nn.Module, ...]
    head: Callable[[Tensor], Tensor]
    projection: nn.Module
    before: float = 1.0
    scale: float = 1.0
    softcap: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        x = self.uncapped(x)
        return self.softcap * torch.tanh(x / self.softcap) if self.softcap else x

    def uncapped(self, x: Tensor) -> Tensor:
        """The logits before the cap: linear in `x` but for the scale of the final norm."""
        for module in self.final:
            x = module(_like(x, module))
        x = x if self.before == 1 else x * self.before
        x = self.head(_like(x, self.head) if isinstance(self.head, nn.Module) else x)
        return x if self.scale == 1 else x * self.scale


def _in_features(projection: nn.Module) -> int:
    # transformers' Conv1D keeps its weight as (in, out) and has no `in_features`.
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return int(getattr(projection, "in_features", weight.shape[0]))


def _out_features(projection: nn.Module) -> int:
    return int(getattr(projection, "out_features", 0) or getattr(projection, "nf", 0))


def _like(x: Tensor, module: nn.Module) -> Tensor:
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type == "meta" or not weight.is_floating_point():
        return x
    return x.to(device=weight.device, dtype=weight.dtype)
