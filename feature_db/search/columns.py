"""The columns of features that conditions and sorting take."""

from __future__ import annotations

from typing import NamedTuple

from saekit.errors import ConfigError
from saekit.plugins import nearest

_LABEL = "(SELECT {} FROM label WHERE label.feature = feature.id ORDER BY label.rank DESC, label.id LIMIT 1)"


class Column(NamedTuple):
    """A column of features."""

    sql: str
    """An expression on the table `feature`."""
    numeric: bool
    what: str
    """Its meaning, for people."""
    in_arrays: bool = False
    """Whether :meth:`feature_db.arrays.feature_arrays.FeatureArrays.column` has it."""
    any_of: str = ""
    """Where a feature can have several values: an EXISTS with {} in place of the comparison. `sql` is then the first of them."""
    source: str = ""
    """A SELECT of the features that have one of some values, with {} in place of IN (...)."""


COLUMNS: dict[str, Column] = {
    "density": Column("feature.density", True, "share of tokens on which the feature fires", True),
    "count": Column("feature.count", True, "tokens on which it fires", True),
    "mean": Column("feature.mean", True, "mean activation where it fires", True),
    "max": Column("feature.max", True, "largest activation", True),
    "number": Column("feature.number", True, "number of the feature in its dictionary", True),
    "input_score": Column("feature.input_score", True, "share of its strongest examples whose peak it promotes, 0 to 1"),
    "output_score": Column("feature.output_score", True, "how likely a clamp makes the tokens that it promotes, 0 to 1"),
    "effect": Column("feature.effect", True, "how far a clamp moves the prediction on neutral prompts, in nats"),
    "kind": Column("feature.kind", False, "word, piece, class, context, output, dense or dead", True),
    "label": Column(_LABEL.format("label.text"), False, "the label that is shown"),
    "label_score": Column("feature.label_score", True, "balanced accuracy of that label on held-out documents"),
    "list": Column(
        "(SELECT MIN(list.name) FROM list WHERE list.feature = feature.id)",
        False,
        "a list that the feature is in",
        any_of="EXISTS (SELECT 1 FROM list WHERE list.feature = feature.id AND list.name {})",
        source="SELECT feature FROM list WHERE name {}",
    ),
    "note": Column(
        "(SELECT MIN(note.text) FROM note WHERE note.feature = feature.id)",
        False,
        "a note on the feature",
        any_of="EXISTS (SELECT 1 FROM note WHERE note.feature = feature.id AND note.text {})",
        source="SELECT feature FROM note WHERE text {}",
    ),
    "label_source": Column(
        _LABEL.format("label.method"),
        False,
        "who made it: human, words, pieces, class, promotes, ...",
        source="SELECT feature FROM label WHERE method {}",
    ),
}
"""Columns by name."""


def column(name: str) -> Column:
    """The column of this name.

    Raises:
        ConfigError: no column has that name; the message names all columns.
    """
    if name not in COLUMNS:
        raise ConfigError(f"There is no column {name!r:.40}.", f"{nearest(name, COLUMNS)} Columns: {', '.join(COLUMNS)}.".strip())
    return COLUMNS[name]
