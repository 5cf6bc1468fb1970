"""The signals of a search: kinds of evidence that a feature has to do with a query.

A signal is a function from a :class:`~feature_db.search.lookup.Lookup` to matches by feature id (or, for signals that touch many
features, to :class:`~feature_db.search.lookup.Scores`), and a row of :data:`SIGNALS`::

    # my_signal.py, used with SAEKIT_PLUGINS=my_signal.py saekit search WORKSPACE QUERY --by mine
    from feature_db.search import SIGNALS, Lookup, Match, Signal

    def mine(lookup: Lookup) -> dict[int, Match]:
        return {stat.feature: Match(stat.score, "fires on it") for stat in lookup.stats("fires_word", lookup.words)}

    SIGNALS.register("mine", Signal(mine, weight=0.5))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.feature_arrays import Entries
from feature_db.search.classes import classes
from feature_db.search.corpus_labels import told
from feature_db.search.lookup import Lookup, Match, Scores
from feature_db.search.meaning import NEAR, meaning, word_sets
from feature_db.search.saying import says
from feature_db.store.schema import feature_id
from saekit.plugins import Registry

_BY_RULE = 0.05
"""Weight of a word in a label by a rule, beside one that a person or a model wrote."""


@dataclass(frozen=True)
class Signal:
    """A row of :data:`SIGNALS`."""

    find: Callable[[Lookup], Mapping[int, Match] | Iterable[Scores]]
    """Returns matches by feature id, or scores, for one word of the query or for all of it."""
    weight: float
    """How far this signal alone can carry a feature, 0 to 1."""
    default: bool = True
    """Whether a search uses the signal if no signals are named."""
    whole: bool = False
    """Whether the signal takes the whole query instead of each word."""


def in_role(role: str, lookup: Lookup) -> Iterator[Scores]:
    """Features that have the word, or another of its stem, in a role."""
    for sae, found in lookup.entries(role, lookup.words):
        features, place = np.unique(found.features, return_inverse=True)
        weights = found.scores * _per_term(found.terms, {i: term.weight for i, term in lookup.words.items()})
        values = np.minimum(np.bincount(place, weights, len(features)), 1.0)

        def why(feature: int, found: Entries = found, weights: NDArray[np.floating[Any]] = weights) -> str:
            own = np.flatnonzero(found.features == feature).tolist()
            terms = [lookup.words[term].text for term in found.terms[own].tolist()]
            return _said(role, list(zip(weights[own].tolist(), found.values[own].tolist(), terms)))

        yield Scores(sae, features, values, why)


def _said(role: str, rows: list[tuple[float, float, str]]) -> str:
    """A sentence about the terms of a role, from (weight, value, text)."""
    names = ", ".join(f"'{text}'" for _, _, text in sorted(rows, key=lambda row: (-row[0], row[2]))[:3])
    total, most = sum(value for _, value, _ in rows), max(value for _, value, _ in rows)
    return {
        "fires_word": f"fires on {names} ({total:.0%} of its activation)",
        "peaks": f"peaks on {names} ({total:.0%} of its strongest examples)",
        "before": f"fires before {names} ({total:.0%} of its activation)",
        "context": f"has {names} around its peaks ({most:.0%} of its strongest examples)",
    }[role]


def on_tokens(role: str, lookup: Lookup) -> Iterator[Scores]:
    """Features that promote, suppress or cause a token of the word."""
    for sae, found in lookup.entries(role, lookup.promoting):
        values = found.scores * _per_term(found.terms, {i: weight for i, (weight, _) in lookup.promoting.items()})
        order = np.lexsort((found.terms, -values, found.features))
        features, first = np.unique(found.features[order], return_index=True)
        best = order[first]

        def why(feature: int, features: NDArray = features, terms: NDArray = found.terms[best]) -> str:
            return f"{role} '{lookup.promoting[int(terms[np.searchsorted(features, feature)])][1]}'"

        yield Scores(sae, features, values[best], why)


def _per_term(terms: NDArray[np.int64], weight: Mapping[int, float]) -> NDArray[np.float64]:
    """The weight of each term's id."""
    known = sorted(weight)
    return np.array([weight[term] for term in known], np.float64)[np.searchsorted(known, terms)]


def label(lookup: Lookup) -> Iterator[Scores]:
    """Features whose labels contain the word. The match is weaker in longer labels, and far weaker in labels by rules.

    A label or note that a person or a model wrote counts by itself, whatever else the feature is called. What rules say about a
    feature, the other signals read from its statistics.
    """
    labelled = dict(lookup.labelled())
    found = {feature: _BY_RULE * _in_label(text) for feature, text in labelled.items()}
    for feature, text in lookup.written(list(labelled)):
        found[feature] = max(found.get(feature, 0.0), _in_label(text))
    ids = np.array(sorted(found), np.int64)
    values = np.array([found[feature] for feature in ids.tolist()])
    for sae in lookup.chosen.saes:
        here = slice(*np.searchsorted(ids, [feature_id(sae, 0), feature_id(sae + 1, 0)]))
        yield Scores(sae, ids[here] - feature_id(sae, 0), values[here], lambda _: f"its label or a note says '{lookup.word}'")


def _in_label(text: str) -> float:
    """What a word in a label of these words counts."""
    return max(1.1 - 0.1 * len(text.split()), 0.5)


def text(lookup: Lookup) -> dict[int, Match]:
    """Features with the word near the peaks of their examples."""
    found = {}
    for feature, bm25, _ in lookup.full_text("context"):
        bm25 = max(bm25, 0.0)
        found[feature] = Match(bm25 / (1 + bm25), f"'{lookup.word}' is near its peaks")
    return found


def deep(lookup: Lookup) -> dict[int, Match]:
    """Features that fire when the model reads the query; rare features weigh more. Needs the model and the dictionary."""
    if lookup.model is None:
        return {}
    from feature_db.search.running import fired_by_query

    indexed = lookup.model.indexed
    rarest = math.log(max(indexed.n_tokens, 2))
    found = {}
    for number, value in fired_by_query(lookup.model.lm, lookup.model.sae, indexed.site, lookup.query):
        feature, density, largest = lookup.density_and_max(indexed, number)
        if density > 0 and largest > 0:
            share = min(value / largest, 1.0)
            strength = share * min(math.log(1 / density) / rarest, 1.0)
            found[feature] = Match(strength, f"fires on the query at {share:.0%} of its maximum")
    return found


SIGNALS: Registry[Signal] = Registry(
    "signal",
    {
        "near": Signal(partial(word_sets, lambda name: name in NEAR), 0.5, whole=True),
        "named": Signal(partial(word_sets, lambda name: name not in NEAR), 0.95, whole=True),
        "classes": Signal(classes, 0.95, whole=True),
        "meaning": Signal(meaning, 0.05, whole=True),
        "label": Signal(label, 1.0),
        "promotes": Signal(partial(on_tokens, "promotes"), 0.05),
        "causes": Signal(partial(on_tokens, "causes"), 0.05, default=False),
        "says": Signal(says, 0.9, default=False, whole=True),
        "corpus_label": Signal(told, 0.9, default=False),
        "deep": Signal(deep, 0.6, whole=True),
        # The words that these find, `near` finds too.
        "fires_word": Signal(partial(in_role, "fires_word"), 0.9, default=False),
        "peaks": Signal(partial(in_role, "peaks"), 0.8, default=False),
        # A feature with a word around it is seldom about that word.
        "before": Signal(partial(in_role, "before"), 0.35, default=False),
        "context": Signal(partial(in_role, "context"), 0.3, default=False),
        "text": Signal(text, 0.1, default=False),
        # A feature that suppresses a word is not about it.
        "suppresses": Signal(partial(on_tokens, "suppresses"), 0.45, default=False),
    },
)
"""Signals by the names that `saekit search --by` takes. The defaults and weights were chosen with
scripts/bench_search.py; BENCHMARKS.md has their results on concepts on which they were not chosen."""
