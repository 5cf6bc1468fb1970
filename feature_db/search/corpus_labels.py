"""The signal from labels that the corpus carries: features that tell the label that the query names."""

from __future__ import annotations

from feature_db.search.lookup import Lookup, Match
from feature_db.search.query import WORD, marks
from feature_db.store import stored
from feature_db.store.stored import INT, REAL, TEXT


def told(lookup: Lookup) -> dict[int, Match]:
    """Features that tell documents (or spans) with a label that has the word, by F1."""
    found: dict[int, Match] = {}
    saes = tuple(lookup.chosen.saes)
    labels = lookup.db.execute(f"SELECT id, name, level FROM corpus_label WHERE sae IN ({marks(saes)})", saes)
    condition, parameters = lookup.chosen.sql()
    for label, name, level in stored.rows("the labels of the corpus", labels, INT, TEXT, TEXT):
        words = {match[0].casefold() for part in name.split("_") for match in WORD.finditer(part)}
        if lookup.word not in words and lookup.word != name.casefold():
            continue
        rows = lookup.db.execute(
            "SELECT s.feature, s.f1, s.precision, s.recall FROM corpus_label_stat s CROSS JOIN feature ON feature.id = s.feature "
            f"WHERE s.label = ? AND s.f1 > 0 AND {condition}",
            (label, *parameters),
        )
        for feature, f1, precision, recall in stored.rows("the labels of the corpus", rows, INT, REAL, REAL, REAL):
            if feature not in found or f1 > found[feature].value:
                what = f"fires on {level}s with the label {name!r}"
                found[feature] = Match(f1, f"{what} ({precision:.0%} of those it fires on, {recall:.0%} of all)")
    return found
