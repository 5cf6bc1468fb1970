"""Which layout a model gets: the path table given, its family's own, or a guess from its structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from torch import nn

from saekit.errors import ConfigError
from saekit.lm.layout.block import BlockLayout, Readout, table_layout
from saekit.lm.layout.families import FAMILIES, Family, require, submodule
from saekit.lm.layout.guess import guess_layout
from saekit.lm.layout.hook_points import TensorView
from saekit.names.site import KINDS
from saekit.plugins import nearest

Paths = Family | Mapping[str, Any] | str
"""A path table, some entries of one, or the name of a family."""


class Resolved(NamedTuple):
    """A model's layout before its checks.

    Attributes:
        strict: the user gave a table or entries, so a site that fails its check is an error.
        by_structure: it is a guess, not a table.
        d_model: width of the residual stream; 0 if the configuration has it.
        embedding_copied: the model writes into what its embedding returns, so that a read must copy it.
        stream, embedded: how the residual stream lies in what blocks take in and return, and in what the embedding returns.
    """

    family: Family
    blocks: list[BlockLayout]
    readout: Readout
    strict: bool = False
    by_structure: bool = False
    d_model: int = 0
    embedding_copied: bool = False
    stream: TensorView = TensorView()
    embedded: TensorView = TensorView()


def resolve_layout(model: Any, paths: Paths | None = None, name: str = "", *, tables: bool = True) -> Resolved:
    """The layout of `model`.

    Args:
        model: a causal language model.
        paths: a table; or the name of a family whose table to use; or entries to replace in the table that would be used.
        name: what messages call the model.
        tables: use the table of the model's family, if there is one.

    Raises:
        ConfigError: `paths` names no family, or has an entry that a table does not have.
        UnsupportedModel: the model has no residual stream, or lacks a module that `paths` names.
    """
    kind = type(model).__name__
    who = f"{name} ({kind})" if name and name != kind else kind
    if isinstance(paths, Family):
        return _by_table(model, paths, strict=True)
    if isinstance(paths, str):
        return _by_table(model, _adapted(FAMILIES.find(paths), model) or FAMILIES.find(paths), strict=True)
    names = [field.name for field in fields(Family)]
    for key in paths or ():
        if key not in names:
            raise ConfigError(f"A path table has no entry {key!r}.", nearest(key, names))
    known = FAMILIES.get(model.config.model_type) if tables else None
    if known is not None:
        known = _adapted(known, model) if submodule(model, f"{known.layers}.0") is not None else None
    if known is not None:
        return _by_table(model, replace(known, **paths) if paths else known, strict=bool(paths))
    guess = guess_layout(model, paths or {}, who)
    family, blocks = guess.family, guess.blocks
    if paths:
        modules = _blocks(model, family)
        config = model.config.get_text_config()
        blocks = [block.changed(paths, module, config) for block, module in zip(blocks, modules)]
        family = replace(family, **paths)
    # The table of the model shows what most of its layers have.
    fullest = max(blocks, key=lambda block: sum(bool(value) for value in vars(block.paths).values()))
    family = replace(fullest.paths, name=family.name)
    return Resolved(family, blocks, guess.readout, bool(paths), True, *guess[3:])


def _blocks(model: Any, family: Family) -> list[nn.Module]:
    return list(require(model, family.layers, family, "layers").children())


def _by_table(model: Any, table: Family, strict: bool) -> Resolved:
    config = model.config.get_text_config()
    blocks = []
    for layer, block in enumerate(_blocks(model, table)):
        here, absent = (table, {}) if strict else _present(table, block, layer)
        layout = table_layout(here, block, config)
        layout.absent |= absent
        blocks.append(layout)
    final = tuple(module for path in table.final if (module := submodule(model, path)) is not None)
    cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    head = model.get_output_embeddings()
    return Resolved(table, blocks, Readout(final, head, head, softcap=cap), strict)


def _present(table: Family, block: nn.Module, layer: int) -> tuple[Family, dict[str, str]]:
    """The table without the modules that a block lacks, and the kinds of sites that are absent for it."""
    absent: dict[str, str] = {}
    gone: dict[str, Any] = {}
    for kind, row in KINDS.items():
        path = getattr(table, row.module, "")
        if path and submodule(block, path) is None:
            gone[row.module] = ""
            absent[kind] = f"layer {layer} has no module {path!r}"
    if gone.keys() & {"o", "v"}:
        for kind in ("q", "k", "v", "heads", "pattern"):
            absent.setdefault(kind, f"layer {layer} has no attention")
        gone |= dict.fromkeys(("o", "q", "k", "v"), "")
    return replace(table, **gone), absent


def _adapted(family: Family, model: Any) -> Family | None:
    return family if family.adapt is None else family.adapt(family, model.config)
