"""The input of search signals: one word of a query, and ways to look it up in the database."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_db.arrays.feature_arrays import OF_BUILD, Entries, FeatureArrays
from feature_db.arrays.rows import columns
from feature_db.labels.rules import HUMAN, LABEL_METHODS
from feature_db.meaning.embedders import Embedder
from feature_db.meaning.profile import Profile
from feature_db.meaning.word_sets import Asked
from feature_db.records import IndexedSAE
from feature_db.search.query import WORD, Filter, marks
from feature_db.search.where import Columns
from feature_db.store import stored
from feature_db.store.schema import ROLES, feature_id
from feature_db.store.stored import INT, INT_OR_NONE, REAL, TEXT, TEXT_OR_NONE

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

STEM = 0.8
"""Weight of a word that shares only its stem with the query's."""
FULL_TEXT_LIMIT = 1000
_MOST_OF_SOURCE = 50_000
LABEL_LIMIT = 5000
"""Of each dictionary; all labels by people count. A word that more labels have says little."""


class Match(NamedTuple):
    """Evidence of one signal that a feature has to do with the query."""

    value: float
    """0 to 1, before the signal's weight."""
    why: str
    """For people, like "fires on 'happy'"."""


class Scores(NamedTuple):
    """Evidence of one signal about the features of one dictionary."""

    sae: int
    """Id of the dictionary."""
    features: NDArray[np.int64]
    """Numbers of features, ascending."""
    values: NDArray[np.floating[Any]]
    """0 to 1, before the signal's weight."""
    why: Callable[[int], str]
    """Says for people why a feature with this number matches. It is called for the features that are shown."""

    def value(self, number: int) -> float:
        """The value of the feature with this number; 0 where there is no evidence about it."""
        place = int(np.searchsorted(self.features, number))
        there = place < len(self.features) and self.features[place] == number
        return float(self.values[place]) if there else 0.0


class Term(NamedTuple):
    """A token or word of the corpus with the stem of the query's word."""

    id: int
    kind: str
    """token or word"""
    text: str
    pieces: str | None
    """Of a word: see the column `term.pieces`."""
    weight: float
    """1 for the word itself, STEM for another one of its stem."""


class Stat(NamedTuple):
    """That a feature has a term in a role."""

    feature: int
    term: int
    value: float
    score: float


@dataclass(frozen=True)
class Model:
    """The model and the dictionary, for signals that run the query."""

    lm: LanguageModel
    sae: SAE
    indexed: IndexedSAE


@dataclass
class Lookup:
    """One word of a query in one database. Signals return features by their id (:func:`feature_db.store.schema.feature_id`).

    Attributes:
        db: a read-only connection; see schema.sql for the tables.
        chosen: the features that may be returned.
        query: all of the query.
        features: returns the arrays of a dictionary's features, given its id.
        word: the word, case-folded; for signals of whole queries, empty.
        model: the model and dictionary, if the caller gave them.
        corpora: ids of the corpora that the dictionaries were indexed on.
        dictionaries: address of each dictionary, by id.
        profiles: returns the words that the features of a dictionary fire on, and the embedder of the words, given its id.
        asked: the query about each dictionary, by the dictionary's id; filled when first needed.
    """

    db: sqlite3.Connection
    chosen: Filter
    query: str
    features: Callable[[int], FeatureArrays]
    word: str = ""
    model: Model | None = None
    corpora: Sequence[int] = field(default_factory=list)
    dictionaries: Mapping[int, str] = field(default_factory=dict)
    profiles: Callable[[int], tuple[Profile, Embedder]] | None = None
    asked: dict[int, Asked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.corpora:
            sql = f"SELECT DISTINCT corpus FROM sae WHERE id IN ({marks(self.chosen.saes)})"
            self.corpora = [row[0] for row in self.db.execute(sql, tuple(self.chosen.saes))]

    def of(self, word: str) -> Lookup:
        """The same for another word."""
        return replace(self, word=word)

    @cached_property
    def terms(self) -> list[Term]:
        """Tokens and words with the stem of the word."""
        columns = "term.id, term.kind, term.text, term.pieces"
        where = f"term.corpus IN ({marks(self.corpora)}) ORDER BY term.id"
        if WORD.fullmatch(self.word):
            source = (
                f"SELECT {columns} FROM term_fts CROSS JOIN term ON term.id = term_fts.rowid WHERE term_fts MATCH ? AND {where}"
            )
            rows = self.db.execute(source, (_quoted(self.word), *self.corpora))
        else:
            source = f"SELECT {columns} FROM term WHERE term.text = ? AND term.kind = 'word' AND {where}"
            rows = self.db.execute(source, (self.word, *self.corpora))
        found = stored.rows("the words of a corpus", rows, INT, TEXT, TEXT, TEXT_OR_NONE)
        return [
            Term(i, kind, text, pieces, 1.0 if text.strip().casefold() == self.word else STEM) for i, kind, text, pieces in found
        ]

    @cached_property
    def words(self) -> dict[int, Term]:
        """The terms that are words, by id."""
        return {term.id: term for term in self.terms if term.kind == "word"}

    @cached_property
    def promoting(self) -> dict[int, tuple[float, str]]:
        """Tokens whose promotion promotes the word, by term id: how far, and their text.

        A token counts by the share of its occurrences that lie in the word: " happy" in full, the first piece of a longer word
        little. A word that the corpus does not hold is looked for in the vocabulary.
        """
        tokens: dict[int, tuple[float, str]] = {}
        known = any(term.kind == "word" and term.weight == 1 for term in self.terms)
        for term in self.terms:
            if term.kind == "word":
                for token, share in stored.pieces("the words of a corpus", term.pieces):
                    for i, text in self._spelled(term.id, token):
                        if share * term.weight > tokens.get(i, (0.0, ""))[0]:
                            tokens[i] = (share * term.weight, text)
            elif term.text.strip().casefold() == self.word and term.id not in tokens and not known:
                tokens[term.id] = (1.0 if term.text[:1].isspace() else 0.5, term.text)
        return tokens

    def _spelled(self, word: int, token: int) -> list[stored.Row]:
        """Terms of a token id in the corpus of a word."""
        joined = "term t JOIN term w ON w.corpus = t.corpus"
        sql = f"SELECT t.id, t.text FROM {joined} WHERE w.id = ? AND t.kind = 'token' AND t.token = ?"
        return stored.rows("the tokens of a corpus", self.db.execute(sql, (word, token)), INT, TEXT)

    @cached_property
    def rarity(self) -> float:
        """Weight of the word in a query: 1 + log of the number of tokens per occurrence."""
        some = marks(self.corpora)
        found = self.db.execute(
            f"SELECT SUM(term.count), (SELECT SUM(n_tokens) FROM corpus WHERE id IN ({some})) FROM term "
            f"WHERE corpus IN ({some}) AND kind = 'word' AND text = ?",
            (*self.corpora, *self.corpora, self.word),
        ).fetchone()
        count, tokens = stored.row("the words of a corpus", found, INT_OR_NONE, INT_OR_NONE)
        return 1.0 + math.log(max(tokens or 1, 1) / max(count or 1, 1))

    def entries(self, role: str, terms: Iterable[int]) -> Iterator[tuple[int, Entries]]:
        """The features that have one of the terms in a role, by the id of their dictionary."""
        wanted = list(terms)
        for sae in self.chosen.saes if wanted else ():
            yield sae, self.features(sae).entries(role, wanted) if role in OF_BUILD else self._measured(sae, role, wanted)

    def _measured(self, sae: int, role: str, terms: list[int]) -> Entries:
        """The same for a role that a measurement wrote after the build."""
        sql = (
            "SELECT feature, term, value, score FROM token_stat WHERE term IN (SELECT value FROM json_each(?)) AND role = ? "
            "AND feature BETWEEN ? AND ? ORDER BY term, feature"
        )
        found = self.db.execute(sql, (json.dumps(terms), ROLES[role], feature_id(sae, 0), feature_id(sae + 1, 0) - 1))
        features, *others = columns(f"the {role} of features", found, (np.int64, np.int64, np.float32, np.float32))
        return Entries(features - feature_id(sae, 0), *others)

    def stats(self, role: str, terms: Iterable[int]) -> list[Stat]:
        """The same as a list, ordered by feature and term."""
        found = [
            Stat(feature_id(sae, feature), term, value, score)
            for sae, entries in self.entries(role, terms)
            for feature, term, value, score in zip(*(column.tolist() for column in entries))
        ]
        return sorted(found)

    def labelled(self) -> Iterator[tuple[int, str]]:
        """Features whose labels have the word's stem, and the words of their labels; of each dictionary the first ones."""
        if WORD.fullmatch(self.word):
            for sae in self.chosen.saes:
                found = self.db.execute(
                    "SELECT rowid, label FROM feature_fts WHERE feature_fts MATCH ? AND rowid BETWEEN ? AND ? "
                    f"ORDER BY rowid LIMIT {LABEL_LIMIT}",
                    (f"label: {_quoted(self.word)}", feature_id(sae, 0), feature_id(sae + 1, 0) - 1),
                )
                yield from stored.rows("full-text search", found, INT, TEXT)

    def written(self, labelled: Sequence[int]) -> list[tuple[int, str]]:
        """Labels and notes that have the word's stem and that no rule made: the feature's id and the text.

        Args:
            labelled: features whose labels by models are looked at. All of people's labels and notes are.
        """
        if not WORD.fullmatch(self.word):
            return []
        rules, texts = list(LABEL_METHODS), []
        # "+": the features are looked up among the words, not the other way round.
        having = "+feature IN (SELECT rowid FROM feature_fts WHERE feature_fts MATCH ?)"
        for sae in self.chosen.saes:
            asked = (feature_id(sae, 0), feature_id(sae + 1, 0) - 1, f"label: {_quoted(self.word)}")
            found = self.db.execute(
                f"SELECT feature, keywords FROM label WHERE method = '{HUMAN}' AND feature BETWEEN ? AND ? AND {having} "
                f"UNION ALL SELECT feature, text FROM note WHERE feature BETWEEN ? AND ? AND {having}",
                (*asked, *asked),
            )
            texts += stored.rows("the labels", found, INT, TEXT)
        found = self.db.execute(
            "SELECT label.feature, label.keywords FROM json_each(?) AS wanted CROSS JOIN label ON label.feature = wanted.value "
            f"WHERE label.method NOT IN ({marks([HUMAN, *rules])})",
            (json.dumps(list(labelled)), HUMAN, *rules),
        )
        texts += stored.rows("the labels", found, INT, TEXT)
        return [texts[i] for i in _having_stem(self.word, [text for _, text in texts])]

    def full_text(self, column: str) -> list[tuple[int, float, str]]:
        """Chosen features whose labels (`label`) or example texts (`context`) have the word's stem: (feature, BM25, text)."""
        if not WORD.fullmatch(self.word):
            return []
        condition, parameters = self.chosen.sql()
        found = self.db.execute(
            f"SELECT feature.id, -bm25(feature_fts) AS weight, feature_fts.{column} "
            f"FROM feature_fts CROSS JOIN feature ON feature.id = feature_fts.rowid "
            f"WHERE feature_fts MATCH ? AND {condition} ORDER BY weight DESC, feature.id LIMIT {FULL_TEXT_LIMIT}",
            (f"{column}: {_quoted(self.word)}", *parameters),
        )
        return [(i, bm25, text) for i, bm25, text in stored.rows("full-text search", found, INT, REAL, TEXT)]

    def density_and_max(self, sae: IndexedSAE, number: int) -> tuple[int, float, float]:
        """Id, density and largest activation of a feature."""
        identity = feature_id(sae.id, number)
        row = self.db.execute("SELECT density, max FROM feature WHERE id = ?", (identity,)).fetchone()
        density, largest = stored.row(f"feature {number} of {sae.dictionary}", row, REAL, REAL)
        return identity, density, largest

    def column(self, name: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """A column of the features with these ids, as numbers in the order of its values."""
        values = np.zeros(len(ids), np.float64)
        kinds = sorted({kind for sae in self.chosen.saes for kind in self.features(sae).kinds}) if name == "kind" else []
        for sae in self.chosen.saes:
            arrays, first = self.features(sae), feature_id(sae, 0)
            here = np.flatnonzero((ids >= first) & (ids < first + arrays.n_features))
            of_sae = arrays.column(name, ids[here] - first)
            values[here] = np.array([kinds.index(kind) for kind in arrays.kinds])[of_sae] if kinds else of_sae
        return values

    def passes(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each feature with these ids is chosen, as far as arrays tell."""
        passes = np.zeros(len(ids), bool)
        for sae in self.chosen.saes:
            arrays, first = self.features(sae), feature_id(sae, 0)
            here = np.flatnonzero((ids >= first) & (ids < first + arrays.n_features))
            passes[here] = self.chosen.passes(Columns(arrays, ids[here] - first, self.db))
        return passes

    def fulfil_rest(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each feature with these ids fulfils the conditions that only the tables can tell."""
        rest = self.chosen.rest
        if not rest or not len(ids):
            return np.ones(len(ids), bool)
        wanted = "json_each(?) AS wanted CROSS JOIN feature ON feature.id = wanted.value"  # CROSS: never scan the features
        sql = f"SELECT feature.id FROM {wanted} WHERE {' AND '.join(each.sql for each in rest)}"
        found = self.db.execute(sql, (json.dumps(ids.tolist()), *(value for each in rest for value in each.parameters)))
        return np.isin(ids, [row[0] for row in stored.rows("the features", found, INT)])

    def may_fulfil_rest(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The same with false positives, for many features: a condition that few features fulfil is looked up once."""
        may = np.ones(len(ids), bool)
        for each in self.chosen.rest:
            if each.source:
                found = self.db.execute(f"{each.source} LIMIT {_MOST_OF_SOURCE + 1}", each.parameters)
                fulfil = [row[0] for row in stored.rows("the features", found, INT)]
                if len(fulfil) <= _MOST_OF_SOURCE:
                    may &= np.isin(ids, fulfil)
        return may


def _having_stem(word: str, texts: Sequence[str]) -> list[int]:
    """Places of the texts that have the word's stem, as the full-text search of the database reads words."""
    if not texts:
        return []
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE VIRTUAL TABLE said USING fts5(text, tokenize='porter unicode61')")
        db.executemany("INSERT INTO said(rowid, text) VALUES (?, ?)", enumerate(texts))
        return [place for (place,) in db.execute("SELECT rowid FROM said WHERE said MATCH ? ORDER BY rowid", (_quoted(word),))]


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'
