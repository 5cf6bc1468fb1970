"""Finding features by concept, without any hosted model.

Four signals are fused, each between 0 and 1: the words a feature fires on, the tokens it promotes (W_dec . W_U), full-text search
over labels and examples, and, where a model and its dictionary are at hand, what fires on the query itself. A hit says which
of them spoke for it.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_db import stored
from feature_db.arguments import known
from feature_db.labels.rules import ALL_KINDS
from feature_db.records import Hit
from feature_db.store.schema import ROLES
from feature_db.stored import INT, REAL, TEXT, TEXT_OR_NONE
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

# How far each signal alone can carry a feature.
WEIGHTS = {
    "label": 1.0,
    "fires_word": 0.9,
    "peaks": 0.8,
    "deep": 0.6,
    "promotes": 0.45,
    "suppresses": 0.45,
    "before": 0.35,
    "context": 0.3,
    "text": 0.1,
}
SIGNALS = tuple(signal for signal in WEIGHTS if signal != "suppresses")
"""What a search listens to unless it is told: a feature that suppresses a word is not about it."""
STEM = 0.8
"""Weight of a word that shares only its stem with the query's."""
MAX_WORDS = 100
"""In a query: each word takes several lookups."""
FULL_TEXT_LIMIT = 1000
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_STOP_WORDS = """
    a about after all also am an and any are as at be because been before being both but by can could did do does doing for from
    had has have having he her here hers him his how i if in into is it its just me more most my no nor not of on once only or
    other our out over own same she should so some such than that the their them then there these they this those through to
    too under until up very was we were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class Filter:
    """Which features a search may return; applied before anything is ranked.

    Raises:
        ConfigError: a signal or kind is unknown, or `density` is no pair of numbers.
    """

    saes: Sequence[int]
    kinds: Sequence[str] | None = None
    density: tuple[float, float] = (0.0, 1.0)
    live: bool = True
    signals: Sequence[str] = SIGNALS

    def __post_init__(self) -> None:
        for signal in self.signals:
            known(signal, WEIGHTS, "signal")
        for kind in self.kinds or ():
            known(kind, ALL_KINDS, "kind of feature")
        if len(self.density) != 2 or not all(isinstance(bound, int | float) and bound == bound for bound in self.density):
            raise ConfigError(f"density is {self.density!r}.", "Give the least and the largest share of tokens, like (0, 0.1).")

    def sql(self) -> tuple[str, list[object]]:
        """A condition on `feature`, and its parameters."""
        condition = f"feature.sae IN ({_marks(self.saes)}) AND feature.density BETWEEN ? AND ?"
        parameters: list[object] = [*self.saes, *self.density]
        if self.live:
            condition += " AND feature.count > 0"
        if self.kinds is not None:
            condition += f" AND feature.kind IN ({_marks(self.kinds)})"
            parameters += self.kinds
        return condition, parameters


@dataclass
class Evidence:
    """That a signal speaks for a feature."""

    value: float
    """0 to 1, before the signal's weight."""
    why: str


# feature id -> signal -> evidence
Found = dict[int, dict[str, Evidence]]


def query_words(query: str) -> list[str]:
    """The words of a query, case-folded, each once, without stop words unless it has no other.

    A query without any word ('"', "?!") is one word by itself. Bytes of a command line that were no UTF-8 are left out.

    Raises:
        ConfigError: there are more than MAX_WORDS.
    """
    query = query.encode("utf-8", "ignore").decode()
    words = [match[0].casefold() for match in _WORD.finditer(query)]
    words = list(dict.fromkeys(word[:-2] if word[-2:] in ("'s", "’s") else word for word in words))
    bare = query.strip().casefold()
    words = [word for word in words if word not in STOP_WORDS] or words or ([bare] if bare else [])
    if len(words) > MAX_WORDS:
        raise ConfigError(f"The query has {len(words)} different words.", f"Give at most {MAX_WORDS}.")
    return words


def search(
    db: sqlite3.Connection,
    words: Sequence[str],
    k: int,
    chosen: Filter,
    deep: Iterable[tuple[int, float, float]] = (),
) -> list[Hit]:
    """The k best features for a query; equally good ones in the order of their ids.

    Args:
        db: the database.
        words: of the query, from :func:`query_words`.
        k: how many.
        chosen: the features to rank.
        deep: (feature id, strength 0 to 1, share of its maximum) of features that fire on the query itself.
    """
    corpora = [row[0] for row in db.execute(f"SELECT DISTINCT corpus FROM sae WHERE id IN ({_marks(chosen.saes)})", chosen.saes)]
    found = [(_rarity(db, corpora, word), _evidence(db, corpora, chosen, word)) for word in words]
    found = [(rarity, features) for rarity, features in found if features]
    total = sum(rarity for rarity, _ in found)
    # What speaks for a feature, by signal: (share of the query that the word is, evidence) of each word.
    said: dict[int, dict[str, list[tuple[float, Evidence]]]] = defaultdict(lambda: defaultdict(list))
    for rarity, features in found:
        for feature, signals in features.items():
            for name, evidence in signals.items():
                said[feature][name].append((rarity / total, evidence))
    score: dict[int, float] = defaultdict(float)
    reasons: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for feature, by_signal in said.items():
        score[feature] = _union(WEIGHTS[name] * _together(of, len(found)) for name, of in by_signal.items())
        reasons[feature] = [(share * WEIGHTS[name] * e.value, e.why) for name, of in by_signal.items() for share, e in of]
    deep = deep if "deep" in chosen.signals else ()
    allowed = _allowed(db, chosen, [feature for feature, _, _ in deep])
    for feature, strength, share in deep:
        if feature in allowed:
            score[feature] = _union([score[feature], WEIGHTS["deep"] * strength])
            reasons[feature].append((WEIGHTS["deep"] * strength, f"fires on the query at {share:.0%} of its maximum"))
    best = sorted(score, key=lambda feature: (-score[feature], feature))[:k]
    return [_hit(db, feature, score[feature], reasons[feature]) for feature in best if score[feature] > 0]


def _hit(db: sqlite3.Connection, feature: int, score: float, reasons: list[tuple[float, str]]) -> Hit:
    found = db.execute(
        "SELECT sae.site, feature.number, feature.density FROM feature JOIN sae ON sae.id = feature.sae WHERE feature.id = ?",
        (feature,),
    ).fetchone()
    site, number, density = stored.row("a feature", found, TEXT, INT, REAL)
    label = db.execute("SELECT text FROM label WHERE feature = ? ORDER BY rank DESC, id LIMIT 1", (feature,)).fetchone()
    text = stored.row("a label", label, TEXT)[0] if label else ""
    reasons = sorted(reasons, key=lambda reason: (-reason[0], reason[1]))
    ordered = list(dict.fromkeys(why for value, why in reasons if value >= 0.2 * reasons[0][0]))
    return Hit(site, number, round(min(score, 1.0), 6), text, density, ", ".join(ordered[:3]))


def _evidence(db: sqlite3.Connection, corpora: Sequence[int], chosen: Filter, word: str) -> Found:
    """All signals for one word of a query."""
    found: Found = defaultdict(dict)
    terms = _terms(db, corpora, word)
    words = {i: weight for i, kind, text, _, weight in terms if kind == "word"}
    texts = {i: text for i, _, text, _, _ in terms}
    for role in (role for role in ("fires_word", "peaks", "before", "context") if role in chosen.signals):
        shares: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
        for feature, term, value, score in _stats(db, chosen, role, words):
            shares[feature].append((score * words[term], value, texts[term]))
        for feature, rows in shares.items():
            found[feature][role] = Evidence(min(sum(row[0] for row in rows), 1.0), _said(role, rows))
    tokens = _promoting(db, corpora, word, terms)
    for role in (role for role in ("promotes", "suppresses") if role in chosen.signals):
        for feature, term, _, score in _stats(db, chosen, role, tokens):
            weight, text = tokens[term]
            if score * weight > found[feature].get(role, Evidence(0, "")).value:
                found[feature][role] = Evidence(score * weight, f"{role} '{text}'")
    for feature, _, text in _full_text(db, chosen, "label", word) if "label" in chosen.signals else ():
        # A short label is about each of its words, a long one less so.
        found[feature]["label"] = Evidence(max(1.1 - 0.1 * len(text.split()), 0.5), f"its label says '{word}'")
    for feature, bm25, _ in _full_text(db, chosen, "context", word) if "text" in chosen.signals else ():
        found[feature]["text"] = Evidence(max(bm25, 0.0) / (1 + max(bm25, 0.0)), f"'{word}' is near its peaks")
    return {feature: signals for feature, signals in found.items() if signals}


def _said(role: str, rows: list[tuple[float, float, str]]) -> str:
    """A role's evidence in words, from (weight, value, term)."""
    names = ", ".join(f"'{text}'" for _, _, text in sorted(rows, key=lambda row: (-row[0], row[2]))[:3])
    total, most = sum(value for _, value, _ in rows), max(value for _, value, _ in rows)
    return {
        "fires_word": f"fires on {names} ({total:.0%} of its activation)",
        "peaks": f"peaks on {names} ({total:.0%} of its strongest examples)",
        "before": f"fires before {names} ({total:.0%} of its activation)",
        "context": f"has {names} around its peaks ({most:.0%} of its strongest examples)",
    }[role]


def _terms(db: sqlite3.Connection, corpora: Sequence[int], word: str) -> list[tuple[int, str, str, str | None, float]]:
    """Tokens and words with the stem of `word`: (id, kind, text, pieces, weight)."""
    columns, where = "term.id, term.kind, term.text, term.pieces", f"term.corpus IN ({_marks(corpora)}) ORDER BY term.id"
    if _WORD.fullmatch(word):
        source = f"SELECT {columns} FROM term_fts CROSS JOIN term ON term.id = term_fts.rowid WHERE term_fts MATCH ? AND {where}"
        rows = db.execute(source, (_quoted(word), *corpora))
    else:
        rows = db.execute(f"SELECT {columns} FROM term WHERE term.text = ? AND term.kind = 'word' AND {where}", (word, *corpora))
    found = stored.rows("the words of a corpus", rows, INT, TEXT, TEXT, TEXT_OR_NONE)
    return [(i, kind, text, pieces, 1.0 if text.strip().casefold() == word else STEM) for i, kind, text, pieces in found]


def _promoting(
    db: sqlite3.Connection, corpora: Sequence[int], word: str, terms: list[tuple[int, str, str, str | None, float]]
) -> dict[int, tuple[float, str]]:
    """Tokens whose promotion promotes the word, by term id: how far, and their text.

    A token counts by the share of its occurrences that lie in the word: " happy" in full, the first piece of a longer word
    little. A word that the corpus does not know is looked for in the vocabulary.
    """
    tokens: dict[int, tuple[float, str]] = {}
    for i, kind, text, pieces, weight in terms:
        if kind == "word":
            for token, share in stored.pieces("the words of a corpus", pieces):
                spelled = db.execute(
                    "SELECT t.id, t.text FROM term t JOIN term w ON w.corpus = t.corpus "
                    "WHERE w.id = ? AND t.kind = 'token' AND t.token = ?",
                    (i, token),
                )
                for term, shown in stored.rows("the tokens of a corpus", spelled, INT, TEXT):
                    if share * weight > tokens.get(term, (0.0, ""))[0]:
                        tokens[term] = (share * weight, shown)
        elif text.strip().casefold() == word and i not in tokens and not any(row[1] == "word" and row[4] == 1 for row in terms):
            tokens[i] = (1.0 if text[:1].isspace() else 0.5, text)
    return tokens


def _stats(db: sqlite3.Connection, chosen: Filter, role: str, terms: Iterable[int]) -> list[tuple[int, int, float, float]]:
    """(feature, term, value, score) of the chosen features that have one of the terms in a role."""
    ids = sorted(terms)
    condition, parameters = chosen.sql()
    found = db.execute(
        f"SELECT s.feature, s.term, s.value, s.score FROM token_stat s CROSS JOIN feature ON feature.id = s.feature "
        f"WHERE s.term IN ({_marks(ids)}) AND s.role = ? AND {condition} ORDER BY s.feature, s.term",
        (*ids, ROLES[role], *parameters),
    )
    return [(f, t, v, w) for f, t, v, w in stored.rows(f"the {role} of features", found, INT, INT, REAL, REAL)]


def _full_text(db: sqlite3.Connection, chosen: Filter, column: str, word: str) -> list[tuple[int, float, str]]:
    """Features whose labels or example texts have the word's stem: (feature, BM25, that text)."""
    if not _WORD.fullmatch(word):
        return []
    condition, parameters = chosen.sql()
    found = db.execute(
        f"SELECT feature.id, -bm25(feature_fts) AS weight, feature_fts.{column} "
        f"FROM feature_fts CROSS JOIN feature ON feature.id = feature_fts.rowid "
        f"WHERE feature_fts MATCH ? AND {condition} ORDER BY weight DESC, feature.id LIMIT {FULL_TEXT_LIMIT}",
        (f"{column}: {_quoted(word)}", *parameters),
    )
    return [(f, weight, text) for f, weight, text in stored.rows("full-text search", found, INT, REAL, TEXT)]


def _rarity(db: sqlite3.Connection, corpora: Sequence[int], word: str) -> float:
    """How much a word of the query counts: log of tokens per occurrence."""
    found = db.execute(
        f"SELECT SUM(term.count), (SELECT SUM(n_tokens) FROM corpus WHERE id IN ({_marks(corpora)})) FROM term "
        f"WHERE corpus IN ({_marks(corpora)}) AND kind = 'word' AND text = ?",
        (*corpora, *corpora, word),
    ).fetchone()
    count, tokens = stored.row("the words of a corpus", found, stored.INT_OR_NONE, stored.INT_OR_NONE)
    return 1.0 + math.log(max(tokens or 1, 1) / max(count or 1, 1))


def _allowed(db: sqlite3.Connection, chosen: Filter, features: Sequence[int]) -> set[int]:
    condition, parameters = chosen.sql()
    return {
        feature
        for feature in features
        if db.execute(f"SELECT 1 FROM feature WHERE id = ? AND {condition}", (feature, *parameters)).fetchone()
    }


def fired_by_query(lm: LanguageModel, sae: SAE, site: str, query: str) -> list[tuple[int, float]]:
    """Features that fire on the query's own tokens and their largest activation there."""
    import torch

    tokens_BT, mask_BT = lm.encode([query])
    with torch.no_grad():
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site][0]
        counts = lm.ordinary(tokens_BT[0], mask_BT[0])
        if not counts.any():  # a query of one token, from a tokenizer without BOS
            counts = lm.ordinary(tokens_BT[0], mask_BT[0], keep_first=True)
        code = sae.encode_sparse(acts[counts.to(acts.device)])
    largest: dict[int, float] = defaultdict(float)
    for values, features in zip(code.values.tolist(), code.indices.tolist()):
        for value, feature in zip(values, features):
            if value > 0:
                largest[feature] = max(largest[feature], value)
    return sorted(largest.items())


def _together(words: list[tuple[float, Evidence]], n_words: int) -> float:
    """One signal's evidence for all words of a query: it adds up, since a feature of a concept spreads over the concept's words,
    and counts for as much of the query as it is about."""
    added = sum(n_words * share * evidence.value for share, evidence in words)
    return min(added, 1.0) * sum(share for share, _ in words)


def _union(parts: Iterable[float]) -> float:
    """Probabilistic or: evidence adds up but never beyond 1."""
    return 1 - math.prod(1 - part for part in parts)


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _marks(items: Sequence[object]) -> str:
    return ", ".join("?" * len(items))
