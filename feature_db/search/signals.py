"""The signals of a search: kinds of evidence that a feature has to do with a query.

A signal is a function from a :class:`~feature_db.search.lookup.Lookup` to matches by feature id (or, for signals that take the
whole query and touch many features, to :class:`~feature_db.search.lookup.Scores`), and a row of :data:`SIGNALS`::

    # my_signal.py, used with SAEKIT_PLUGINS=my_signal.py saekit search WORKSPACE QUERY --by mine
    from feature_db.search import SIGNALS, Lookup, Match, Signal

    def mine(lookup: Lookup) -> dict[int, Match]:
        return {stat.feature: Match(stat.score, "fires on it") for stat in lookup.stats("fires_word", lookup.words)}

    SIGNALS.register("mine", Signal(mine, weight=0.5))
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from feature_db.search.classes import classes
from feature_db.search.lookup import Lookup, Match, Scores
from feature_db.search.meaning import NEAR, meaning, word_sets
from saekit.plugins import Registry


@dataclass(frozen=True)
class Signal:
    """A row of :data:`SIGNALS`."""

    find: Callable[[Lookup], Mapping[int, Match] | Iterable[Scores]]
    """Returns matches by feature id, for one word of the query or for all of it. Only signals of whole queries return scores."""
    weight: float
    """How far this signal alone can carry a feature, 0 to 1."""
    default: bool = True
    """Whether a search uses the signal if no signals are named."""
    whole: bool = False
    """Whether the signal takes the whole query instead of each word."""


def in_role(role: str, lookup: Lookup) -> dict[int, Match]:
    """Features that have the word, or another of its stem, in a role of `token_stat`."""
    found: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for stat in lookup.stats(role, lookup.words):
        term = lookup.words[stat.term]
        found[stat.feature].append((stat.score * term.weight, stat.value, term.text))
    return {feature: Match(min(sum(row[0] for row in rows), 1.0), _said(role, rows)) for feature, rows in found.items()}


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


def on_tokens(role: str, lookup: Lookup) -> dict[int, Match]:
    """Features that promote, suppress or cause a token of the word."""
    found: dict[int, Match] = {}
    for stat in lookup.stats(role, lookup.promoting):
        weight, text = lookup.promoting[stat.term]
        if stat.score * weight > (found[stat.feature].value if stat.feature in found else 0):
            found[stat.feature] = Match(stat.score * weight, f"{role} '{text}'")
    return found


def label(lookup: Lookup) -> dict[int, Match]:
    """Features whose labels contain the word. The match is weaker in longer labels."""
    return {
        feature: Match(max(1.1 - 0.1 * len(text.split()), 0.5), f"its label says '{lookup.word}'")
        for feature, _, text in lookup.full_text("label")
    }


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
        "near": Signal(partial(word_sets, lambda name: name in NEAR), 0.9, whole=True),
        "named": Signal(partial(word_sets, lambda name: name not in NEAR), 0.95, whole=True),
        "classes": Signal(classes, 0.9, whole=True),
        "meaning": Signal(meaning, 0.6, whole=True),
        "label": Signal(label, 1.0),
        "promotes": Signal(partial(on_tokens, "promotes"), 0.45),
        "causes": Signal(partial(on_tokens, "causes"), 0.45, default=False),
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
"""Signals by the names that `saekit search --by` takes. The defaults and weights were chosen on half of the concepts of
scripts/bench_search.py."""
