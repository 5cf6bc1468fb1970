"""Words that a search certainly finds, whatever a dictionary has learnt: they are read from its database."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from feature_db import FeatureDB

_QUERY = """
select word, ref from words
where role = 'fires_word' and ref like 'feature:{dictionary}/%' and length(word) > 3 and word not glob '*[^a-z]*'
order by value desc, ref
"""


class Findable(NamedTuple):
    """A word, and the feature that fires on it with a larger share of its activation than any feature does on another word."""

    word: str
    ref: str


def findable(workspace: Path, dictionary: str) -> Findable:
    """A word to search for. Training ends in other features on other machines, so no test can name one.

    Args:
        workspace: one with a database.
        dictionary: address of the dictionary.
    """
    with FeatureDB.open(workspace / "features.sqlite") as database:
        (row,) = database.sql(_QUERY.format(dictionary=dictionary), limit=1).rows
    return Findable(*row)
