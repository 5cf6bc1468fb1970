"""Finds features by concept, without any hosted model: fuses the signals of :mod:`feature_db.search.signals`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from feature_db.records import Hit
from feature_db.search.lookup import Lookup, Match
from feature_db.search.signals import SIGNALS, Signal
from feature_db.store import stored
from feature_db.store.stored import INT, REAL, TEXT

# Feature id -> signal -> (weight of the word in the query, match) of each word.
_Found = dict[int, dict[str, list[tuple[float, Match]]]]


def chosen_signals(names: str | Sequence[str] | None) -> dict[str, Signal]:
    """The signals of these names; None: those that a search uses by default.

    Raises:
        ConfigError: one of them does not exist; the message names the nearest.
    """
    if names is None:
        return {name: signal for name, signal in SIGNALS.items() if signal.default}
    return {name: SIGNALS.find(name) for name in ([names] if isinstance(names, str) else names)}


def search(lookup: Lookup, words: Sequence[str], k: int, signals: dict[str, Signal]) -> list[Hit]:
    """Find the k best features for a query. Ties are ordered by id.

    Args:
        lookup: the query in the database.
        words: the words of the query, from :func:`feature_db.search.query.query_words`.
        k: number of features.
        signals: the signals to combine, by name.
    """
    found, n_words = _by_words(lookup, words, signals)
    score: dict[int, float] = defaultdict(float)
    reasons: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for feature, by_signal in found.items():
        score[feature] = _union(signals[name].weight * _together(of, n_words) for name, of in by_signal.items())
        reasons[feature] = [(share * signals[name].weight * m.value, m.why) for name, of in by_signal.items() for share, m in of]
    for signal in (signal for signal in signals.values() if signal.whole):
        for feature, match in signal.find(lookup).items():
            score[feature] = _union([score[feature], signal.weight * match.value])
            reasons[feature].append((signal.weight * match.value, match.why))
    hits: list[Hit] = []
    for feature in sorted(score, key=lambda feature: (-score[feature], feature)):
        if len(hits) == k or score[feature] <= 0:
            break
        if lookup.allows(feature):
            hits.append(_hit(lookup, feature, score[feature], reasons[feature]))
    return hits


def _by_words(lookup: Lookup, words: Sequence[str], signals: dict[str, Signal]) -> tuple[_Found, int]:
    """Matches of the signals that take single words, and the number of words with any match."""
    each = []
    for one in map(lookup.of, words):
        matches = {name: signal.find(one) for name, signal in signals.items() if not signal.whole}
        if any(matches.values()):
            each.append((one.rarity, matches))
    total = sum(rarity for rarity, _ in each)
    found: _Found = defaultdict(lambda: defaultdict(list))
    for rarity, matches in each:
        for name, by_feature in matches.items():
            for feature, match in by_feature.items():
                found[feature][name].append((rarity / total, match))
    return found, len(each)


def _hit(lookup: Lookup, feature: int, score: float, reasons: list[tuple[float, str]]) -> Hit:
    db = lookup.db
    found = db.execute(
        "SELECT sae, number, density FROM feature WHERE id = ?",
        (feature,),
    ).fetchone()
    sae, number, density = stored.row("a feature", found, INT, INT, REAL)
    label = db.execute("SELECT text FROM label WHERE feature = ? ORDER BY rank DESC, id LIMIT 1", (feature,)).fetchone()
    text = stored.row("a label", label, TEXT)[0] if label else ""
    reasons = sorted(reasons, key=lambda reason: (-reason[0], reason[1]))
    ordered = list(dict.fromkeys(why for value, why in reasons if value >= 0.2 * reasons[0][0]))
    return Hit(lookup.dictionaries[sae], number, round(min(score, 1.0), 6), text, density, ", ".join(ordered[:3]))


def _together(words: list[tuple[float, Match]], n_words: int) -> float:
    """Combine one signal's matches of all words of a query.

    Matches add up, because a feature of a concept spreads over the words of the concept. The sum is weighted by the share of the
    query that these words make up.
    """
    added = sum(n_words * share * match.value for share, match in words)
    return min(added, 1.0) * sum(share for share, _ in words)


def _union(parts: Iterable[float]) -> float:
    """Noisy or: the result grows with each part and never exceeds 1."""
    return 1 - math.prod(1 - part for part in parts)
