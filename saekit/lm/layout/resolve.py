"""Which path table a model gets: the one given, its family's own, or a guess from its structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.lm.layout.families import FAMILIES, Family, submodule
from saekit.lm.layout.guess import guess_layout
from saekit.plugins import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Paths = Family | Mapping[str, Any] | str
"""A path table, some entries of one, or the name of a family."""


def family_of(model: PreTrainedModel, paths: Paths | None = None) -> Family:
    """The path table for `model`.

    Args:
        model: a causal language model.
        paths: a table; or the name of a family whose table to use; or entries to replace in the table that would be used.

    Raises:
        ConfigError: `paths` names no family, or has an entry that a table does not have.
        UnsupportedModel: the family is unknown and its structure cannot be guessed, or the model has no residual stream that adds
            up.
    """
    if isinstance(paths, Family):
        return paths
    if isinstance(paths, str):
        return _adapted(FAMILIES.find(paths), model)
    names = [field.name for field in fields(Family)]
    for key in paths or ():
        if key not in names:
            raise ConfigError(f"A path table has no entry {key!r}.", nearest(key, names))
    known = FAMILIES.get(model.config.model_type)
    if known is None or submodule(model, f"{known.layers}.0") is None:
        known = guess_layout(model, paths or {})
    else:
        known = _adapted(known, model)
    return replace(known, **paths) if paths else known


def _adapted(family: Family, model: PreTrainedModel) -> Family:
    return family if family.adapt is None else family.adapt(family, model.config)
