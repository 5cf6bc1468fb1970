"""The signal of token classes: features that detect quotation marks, plural nouns, first words of sentences, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from feature_db.labels.token_classes import CALLED, CLASSES
from feature_db.meaning.languages import LANGUAGES
from feature_db.meaning.word_sets import LEAST_SHARE, UNSAID, forms
from feature_db.search.lookup import Lookup, Match
from feature_db.search.meaning import chance
from feature_db.search.query import query_words
from feature_db.store import stored
from feature_db.store.stored import INT, REAL

_MOST = 500
"""Features of one class that are found, at most."""


def classes(lookup: Lookup) -> dict[int, Match]:
    """Features that detect a class of tokens that the query names, by the chance that they are right; it is
    less if the query says more than the class's name."""
    found: dict[int, Match] = {}
    for name, share in named(lookup.query).items():
        for feature, precision, recall, f1 in islice(_chosen(lookup, name), _MOST):
            # The F1 counts the weakest activation as firing. With a threshold it would be higher: the root is about that F1.
            value = float(chance(np.array(min(f1, 1.0) ** 0.5))) * share
            if feature not in found or value > found[feature].value:
                found[feature] = Match(
                    value, f"fires on {CLASSES[name]} ({precision:.0%} of its activation, on {recall:.0%} of them)"
                )
    return found


def _chosen(lookup: Lookup, name: str) -> Iterator[stored.Row]:
    """Id, precision, recall and F1 of the chosen features that detect a class, the best first."""
    found = lookup.db.execute(
        "SELECT feature, precision, recall, f1 FROM class_stat WHERE class = ? ORDER BY f1 DESC, feature", (name,)
    )
    while some := found.fetchmany(_MOST):
        rows = stored.rows("the classes of features", some, INT, REAL, REAL, REAL)
        ids = np.array([row[0] for row in rows], np.int64)
        passes = lookup.passes(ids)
        passes[passes] = lookup.fulfil_rest(ids[passes])
        yield from (row for row, there in zip(rows, passes.tolist()) if there)


def named(query: str) -> dict[str, float]:
    """Classes that a query names, each with the share of the query's words that the name has.

    A class whose name is a part of another's is left out: "plural nouns" are not nouns.
    """
    said = {form for word in re.findall(r"\w+", query.casefold()) for form in forms(word)}
    names = {name: max((set(each.split()) for each in called if set(each.split()) <= said), key=len, default=set())
             for name, called in CALLED.items()}  # fmt: skip
    every = query_words(query)
    wanted = [set(forms(word)) for word in every if word not in UNSAID] or [set(forms(word)) for word in every]
    shares = {
        name: sum(not each.isdisjoint(words) for each in wanted) / max(len(wanted), 1)
        for name, words in names.items()
        if words and not any(words < other for other in names.values())
    }
    # "French words" are of a language, "French fries" are not.
    return {name: share for name, share in shares.items() if share > LEAST_SHARE or name not in LANGUAGES}
