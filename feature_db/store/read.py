"""Reads records from the tables. Callers turn SQLite's errors into typed ones with :func:`feature_db.errors.typed`."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.effects.logits import unpack as unpack_logits
from feature_db.errors import damaged
from feature_db.records import (
    ActivationStats,
    Causal,
    CausedToken,
    CorpusLabel,
    Example,
    FeatureLabel,
    FeatureRecord,
    Firing,
    Histogram,
    IndexedSAE,
    Interval,
    ListEntry,
    Note,
    Partner,
    StoredFile,
    TokenEffect,
)
from feature_db.store import stored, token_lists
from feature_db.store.examples import TOP, unpack
from feature_db.store.schema import feature_id
from feature_db.store.statistics import bin_edges, quantiles, unpack_histogram
from feature_db.store.stored import BLOB, BLOB_OR_NONE, INT, INT_OR_NONE, REAL, REAL_OR_NONE, TEXT, TEXT_OR_NONE
from saekit.names.address import Address
from saekit.names.ref import Ref

_QUANTILES = np.arange(101) / 100
_TEXTS_AT_A_TIME = 500  # SQLite limits the parameters of a statement


def saes(db: sqlite3.Connection, folder: Path) -> list[IndexedSAE]:
    """All dictionaries, by address; `folder` is the database's."""
    found = db.execute(
        "SELECT sae.id, site, site_out, name, architecture, n_features, d_out, n_live, fingerprint, model, n_tokens, "
        "n_documents, vectors FROM sae JOIN corpus ON corpus.id = sae.corpus ORDER BY site, site_out, 4"
    )
    kinds = (INT, TEXT, TEXT, TEXT, TEXT, INT, INT, INT, TEXT, TEXT, INT, INT, TEXT)
    rows = stored.rows("the dictionaries", found, *kinds)
    indexed = []
    for row in rows:
        i, site, out, name, architecture, n, d_out, live, fingerprint, model, tokens, documents, vectors = row
        facts = stored.parsed("the dictionaries", model)
        if not isinstance(facts, dict):
            raise damaged("the dictionaries", "the model's fingerprint is no object")
        indexed.append(
            IndexedSAE(
                i, site, out, name, _dictionary(row, rows), architecture, n, d_out, live, fingerprint, facts, tokens, documents,
                folder / vectors,
            )
        )  # fmt: skip
    return indexed


def _dictionary(row: stored.Row, rows: list[stored.Row]) -> str:
    """The shortest address of a dictionary: a transcoder needs the site that it writes where others read its site too."""
    _, site, out, name, *_ = row
    alone = out == site or sum((other[1], other[3]) == (site, name) for other in rows) == 1
    return (site if alone else f"{site}->{out}") + (f"@{name}" if name else "")


def build_key(db: sqlite3.Connection, address: Address) -> str | None:
    """Key of the build that a dictionary's rows are of; None if it has no rows.

    Databases up to version 2 hold the default dictionary, or do not say which one they hold.
    """
    values = (str(address.site), str(address.place.writes[0]), address.name)
    found = db.execute("SELECT key FROM sae WHERE site = ? AND site_out = ? AND name = ?", values).fetchone()
    return None if found is None else stored.row("the dictionaries", found, TEXT)[0]


def corpus(db: sqlite3.Connection, sae: int) -> dict[str, Any]:
    """What was recorded about the text that a dictionary was indexed on: store, rows, split, tokenizer."""
    sql = "SELECT provenance FROM corpus WHERE id = (SELECT corpus FROM sae WHERE id = ?)"
    (text,) = stored.row("the corpora", db.execute(sql, (sae,)).fetchone(), TEXT)
    facts = stored.parsed("the corpora", text)
    if not isinstance(facts, dict):
        raise damaged("the corpora", "a provenance is no object")
    return facts


def files(db: sqlite3.Connection, sae: int) -> dict[str, StoredFile]:
    """Files recorded with a dictionary, by role; none in a database of version 1."""
    found = db.execute("SELECT role, sha256, size, mtime_ns FROM file WHERE sae = ?", (sae,))
    return {role: StoredFile(*facts) for role, *facts in stored.rows("the files", found, TEXT, TEXT, INT, INT_OR_NONE)}


def record(db: sqlite3.Connection, sae: IndexedSAE, number: int) -> FeatureRecord:
    """Everything about feature `number`, which must be in range."""
    identity, what = feature_id(sae.id, number), f"feature {number} of {sae.dictionary}"
    found = db.execute(
        "SELECT count, density, density_low, density_high, mean, second_moment, max, histogram, kind, input_score, output_score, "
        "effect, logit_histogram FROM feature WHERE id = ?",
        (identity,),
    ).fetchone()
    measured = (REAL_OR_NONE, REAL_OR_NONE, REAL_OR_NONE, BLOB_OR_NONE)
    columns = stored.row(what, found, INT, REAL, REAL, REAL, REAL, REAL, REAL, BLOB, TEXT, *measured)
    count, density, low, high, mean, second, largest, packed, kind, input_score, output_score, effect, logits = columns
    histogram = unpack_histogram(packed)
    labels = _labels(db, identity)
    return FeatureRecord(
        dictionary=sae.dictionary,
        feature=number,
        label=labels[0].text if labels else "",
        labels=labels,
        kind=kind,
        count=count,
        n_tokens=sae.n_tokens,
        density=density,
        density_interval=(low, high),
        mean=mean,
        std=math.sqrt(max(second - mean * mean, 0.0)),
        max=largest,
        quantiles=_grid(histogram, largest),
        histogram=shown(histogram),
        promoted=_effects(db, identity, "promotes"),
        suppressed=_effects(db, identity, "suppresses"),
        words=_firing(db, identity, "fires_word"),
        tokens=_firing(db, identity, "fires_token"),
        before=_firing(db, identity, "before"),
        peaks=_shares(db, identity, "peaks"),
        context=_shares(db, identity, "context"),
        examples=_examples(db, sae, identity),
        input_score=input_score,
        output_score=output_score,
        effect=effect,
        caused=_caused(db, identity),
        logit_histogram=None if logits is None else unpack_logits(logits),
        partners=partners(db, sae, number),
        corpus_labels=_corpus_labels(db, identity),
        notes=notes(db, identity),
        lists=lists_of(db, identity),
    )


def lists_of(db: sqlite3.Connection, feature: int) -> list[str]:
    """Names of the lists that the feature with this id is in."""
    found = db.execute("SELECT name FROM list WHERE feature = ? ORDER BY name", (feature,))
    return [name for (name,) in stored.rows("the lists", found, TEXT)]


def stats(db: sqlite3.Connection, sae: IndexedSAE, number: int) -> ActivationStats:
    """Maximum, mean over all tokens and quantiles of feature `number`, which must be in range."""
    sql = "SELECT max, mean * density, histogram FROM feature WHERE id = ?"
    found = db.execute(sql, (feature_id(sae.id, number),)).fetchone()
    largest, mean, histogram = stored.row(f"feature {number} of {sae.dictionary}", found, REAL, REAL, BLOB)
    return ActivationStats(largest, mean, _grid(unpack_histogram(histogram), largest))


def causal(db: sqlite3.Connection, sae: IndexedSAE, number: int, tokens: int = 5) -> Causal | None:
    """What a clamp of feature `number`, which must be in range, does; None where its output score is not known."""
    identity, what = feature_id(sae.id, number), f"feature {number} of {sae.dictionary}"
    found = db.execute("SELECT output_score, effect FROM feature WHERE id = ?", (identity,)).fetchone()
    score, effect = stored.row(what, found, REAL_OR_NONE, REAL_OR_NONE)
    if score is None or effect is None:
        return None
    sql = "SELECT COUNT(*), SUM(output_score < ?) FROM feature WHERE sae = ? AND output_score IS NOT NULL"
    every, below = stored.row(what, db.execute(sql, (score, sae.id)).fetchone(), INT, INT)
    return Causal(score, effect, below / every, [each.token for each in _caused(db, identity)[:tokens]])


def _terms(db: sqlite3.Connection, feature: int, role: str) -> Iterator[tuple[token_lists.Term, float, float, float, int]]:
    """The tokens or words of a role, with value, rate, peak and hits: NaN and -1 where the role has no such column."""
    rows = token_lists.read(db, (feature, feature), [role], what=f"the {role} of a feature")
    known = token_lists.terms(db, rows.term)
    for term, *facts in zip(*(column.tolist() for column in (rows.term, rows.value, rows.rate, rows.peak, rows.hits))):
        yield (known[term], *facts)


def _effects(db: sqlite3.Connection, feature: int, role: str) -> list[TokenEffect]:
    return [TokenEffect(term.text, _token(term), value) for term, value, *_ in _terms(db, feature, role)]


def _caused(db: sqlite3.Connection, feature: int) -> list[CausedToken]:
    found = _terms(db, feature, "causes")
    return [CausedToken(term.text, _token(term), value, _known("causes", rate)) for term, value, rate, *_ in found]


def _known(role: str, number: float) -> float:
    if math.isnan(number):
        raise damaged(f"the {role} of a feature", "a number is missing")
    return number


def _token(term: token_lists.Term) -> int:
    if term.token is None:
        raise damaged("the tokens of a feature", f"{term.text!r:.40} is no token")
    return term.token


def partners(db: sqlite3.Connection, sae: IndexedSAE, number: int) -> dict[str, list[Partner]]:
    """The features of the same dictionary that go together with a feature, by kind, the nearest first."""
    sql = "SELECT kind, other, value, together, chance, missed FROM partner WHERE feature = ? ORDER BY kind, rank"
    found: dict[str, list[Partner]] = {}
    kinds = (TEXT, INT, REAL, INT_OR_NONE, REAL_OR_NONE, INT_OR_NONE)
    for kind, other, *facts in stored.rows("the partners", db.execute(sql, (feature_id(sae.id, number),)), *kinds):
        if not 0 <= other < sae.n_features:
            raise damaged("the partners of a feature", f"there is no feature {other}")
        found.setdefault(kind, []).append(Partner(other, label_of(db, feature_id(sae.id, other)), *facts))
    return found


def _corpus_labels(db: sqlite3.Connection, feature: int) -> list[CorpusLabel]:
    found = db.execute(
        "SELECT name, level, auc, f1, precision, recall, difference, 1.0 * positives / max(total, 1) FROM corpus_label_stat s "
        "JOIN corpus_label ON corpus_label.id = s.label WHERE s.feature = ? ORDER BY f1 DESC, auc DESC, name",
        (feature,),
    )
    return [CorpusLabel(*row) for row in stored.rows("the labels of the corpus", found, TEXT, TEXT, *[REAL] * 6)]


def _firing(db: sqlite3.Connection, feature: int, role: str) -> list[Firing]:
    found = _terms(db, feature, role)
    return [Firing(term.text, value, _known(role, rate), _known(role, peak), hits) for term, value, rate, peak, hits in found]


def _shares(db: sqlite3.Connection, feature: int, role: str) -> list[tuple[str, float]]:
    return [(term.text, value) for term, value, *_ in _terms(db, feature, role)]


def label_of(db: sqlite3.Connection, feature: int) -> str:
    """The label that is shown for the feature with this id; empty if it has none."""
    found = db.execute("SELECT text FROM label WHERE feature = ? ORDER BY rank DESC, id LIMIT 1", (feature,)).fetchone()
    return str(stored.row("a label", found, TEXT)[0]) if found else ""


def _labels(db: sqlite3.Connection, feature: int) -> list[FeatureLabel]:
    found = db.execute(
        "SELECT id, text, method, model, created, prompt FROM label WHERE feature = ? ORDER BY rank DESC, id", (feature,)
    ).fetchall()
    labels = []
    kinds = (INT, TEXT, TEXT, TEXT_OR_NONE, TEXT_OR_NONE, TEXT_OR_NONE)
    for i, text, method, model, created, prompt in stored.rows("the labels", found, *kinds):
        rows = db.execute("SELECT metric, value, n, low, high FROM label_score WHERE label = ? ORDER BY metric", (i,))
        scores = stored.rows("the scores of labels", rows, TEXT, REAL, INT_OR_NONE, REAL_OR_NONE, REAL_OR_NONE)
        intervals = {metric: Interval(n, low, high) for metric, _, n, low, high in scores if n is not None}
        values = {metric: value for metric, value, *_ in scores}
        labels.append(FeatureLabel(text, method, values, model, intervals, created, prompt))
    return labels


def notes(db: sqlite3.Connection, feature: int) -> list[Note]:
    """The notes of the feature with this id, the oldest first."""
    found = db.execute("SELECT text, created FROM note WHERE feature = ? ORDER BY id", (feature,))
    return [Note(*row) for row in stored.rows("the notes", found, TEXT, TEXT)]


def lists(db: sqlite3.Connection, dictionary: Mapping[int, str]) -> dict[str, list[ListEntry]]:
    """All lists by name; `dictionary` gives the address of each dictionary by its id."""
    sql = "SELECT name, sae, number, note FROM list JOIN feature ON feature.id = list.feature ORDER BY name, position"
    found: dict[str, list[ListEntry]] = {}
    for name, sae, number, note in stored.rows("the lists", db.execute(sql), TEXT, INT, INT, TEXT):
        found.setdefault(name, []).append(ListEntry(Ref.feature(dictionary[sae], number), note))
    return found


def _examples(db: sqlite3.Connection, sae: IndexedSAE, feature: int) -> list[Example]:
    found = db.execute("SELECT windows FROM example WHERE feature = ?", (feature,)).fetchone()
    windows = unpack(stored.row("the examples", found, BLOB)[0])
    ids = sorted({int(token) for window in windows for token in window.token_ids})
    texts: dict[int, str] = {}
    for first in range(0, len(ids), _TEXTS_AT_A_TIME):
        some = ids[first : first + _TEXTS_AT_A_TIME]
        rows = db.execute(
            f"SELECT token, text FROM term WHERE corpus = (SELECT corpus FROM sae WHERE id = ?) AND kind = 'token' "
            f"AND token IN ({', '.join('?' * len(some))})",
            (sae.id, *some),
        )
        texts.update(stored.rows("the texts of tokens", rows, INT, TEXT))
    if missing := [token for token in ids if token not in texts]:
        raise damaged("the texts of tokens", f"token {missing[0]} has none")
    return [
        Example(
            tokens=[texts[token] for token in window.token_ids.tolist()],
            token_ids=window.token_ids.tolist(),
            values=window.values.tolist(),
            row=window.row,
            document=window.document,
            position=window.position,
            peak=window.peak,
            bucket="top" if window.bucket == TOP else f"decile {window.bucket}",
        )
        for window in windows
    ]


def _grid(histogram: NDArray[np.uint32], largest: float) -> tuple[tuple[float, float], ...]:
    if not histogram.any():
        return ()
    values = quantiles(histogram[None], np.array([largest]), _QUANTILES)[0]
    return tuple(zip(_QUANTILES.tolist(), values.tolist()))


def shown(histogram: NDArray[np.uint32]) -> Histogram:
    """The bins of a histogram from the first to the last that is not empty."""
    filled = np.flatnonzero(histogram)
    if not len(filled):
        return Histogram([], [])
    first, last = int(filled[0]), int(filled[-1])
    return Histogram(bin_edges()[first : last + 2].tolist(), histogram[first : last + 1].tolist())
