"""Reading records from the tables. Called inside :func:`feature_db.errors.typed`."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_db.index.statistics import bin_edges, quantiles, unpack_histogram
from feature_db.records import (
    ActivationStats,
    Example,
    FeatureLabel,
    FeatureRecord,
    Firing,
    Histogram,
    IndexedSAE,
    TokenEffect,
)
from feature_db.store.examples import TOP, unpack
from feature_db.store.schema import ROLES, feature_id

_QUANTILES = np.arange(101) / 100


def saes(db: sqlite3.Connection, folder: Path) -> list[IndexedSAE]:
    """All dictionaries, by site name; `folder` is the database's."""
    rows = db.execute(
        "SELECT sae.id, site, site_out, architecture, n_features, n_live, fingerprint, model, n_tokens, n_documents, vectors "
        "FROM sae JOIN corpus ON corpus.id = sae.corpus ORDER BY site"
    )
    return [
        IndexedSAE(i, site, out, architecture, n, live, fingerprint, json.loads(model), tokens, documents, folder / vectors)
        for i, site, out, architecture, n, live, fingerprint, model, tokens, documents, vectors in rows
    ]


def record(db: sqlite3.Connection, sae: IndexedSAE, number: int) -> FeatureRecord:
    """Everything about feature `number`, which must be in range."""
    identity = feature_id(sae.id, number)
    count, density, low, high, mean, second, largest, packed, kind = db.execute(
        "SELECT count, density, density_low, density_high, mean, second_moment, max, histogram, kind FROM feature WHERE id = ?",
        (identity,),
    ).fetchall()[0]
    histogram = unpack_histogram(packed)
    labels = _labels(db, identity)
    return FeatureRecord(
        site=sae.site,
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
        histogram=_shown(histogram),
        promoted=[TokenEffect(*row) for row in _terms(db, identity, "promotes", "term.text, term.token, s.value")],
        suppressed=[TokenEffect(*row) for row in _terms(db, identity, "suppresses", "term.text, term.token, s.value")],
        words=_firing(db, identity, "fires_word"),
        tokens=_firing(db, identity, "fires_token"),
        before=_firing(db, identity, "before"),
        peaks=[(row[0], row[1]) for row in _terms(db, identity, "peaks", "term.text, s.value")],
        context=[(row[0], row[1]) for row in _terms(db, identity, "context", "term.text, s.value")],
        examples=_examples(db, sae, identity),
    )


def stats(db: sqlite3.Connection, sae: IndexedSAE, number: int) -> ActivationStats:
    """Maximum, mean over all tokens and quantiles of feature `number`, which must be in range."""
    sql = "SELECT max, mean * density, histogram FROM feature WHERE id = ?"
    largest, mean, histogram = db.execute(sql, (feature_id(sae.id, number),)).fetchall()[0]
    return ActivationStats(largest, mean, _grid(unpack_histogram(histogram), largest))


def _terms(db: sqlite3.Connection, feature: int, role: str, columns: str) -> list[tuple[Any, ...]]:
    return db.execute(
        f"SELECT {columns} FROM token_stat s JOIN term ON term.id = s.term WHERE s.feature = ? AND s.role = ? ORDER BY s.rank",
        (feature, ROLES[role]),
    ).fetchall()


def _firing(db: sqlite3.Connection, feature: int, role: str) -> list[Firing]:
    return [Firing(*row) for row in _terms(db, feature, role, "term.text, s.value, s.rate, s.peak, s.hits")]


def _labels(db: sqlite3.Connection, feature: int) -> list[FeatureLabel]:
    rows = db.execute("SELECT id, text, method, model FROM label WHERE feature = ? ORDER BY rank DESC, id", (feature,)).fetchall()
    scores = "SELECT metric, value FROM label_score WHERE label = ? ORDER BY metric"
    return [FeatureLabel(text, method, dict(db.execute(scores, (i,)).fetchall()), model) for i, text, method, model in rows]


def _examples(db: sqlite3.Connection, sae: IndexedSAE, feature: int) -> list[Example]:
    windows = unpack(db.execute("SELECT windows FROM example WHERE feature = ?", (feature,)).fetchall()[0][0])
    ids = sorted({int(token) for window in windows for token in window.token_ids})
    texts = dict(
        db.execute(
            f"SELECT token, text FROM term WHERE corpus = (SELECT corpus FROM sae WHERE id = ?) AND kind = 'token' "
            f"AND token IN ({', '.join('?' * len(ids))})",
            (sae.id, *ids),
        ).fetchall()
    )
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


def _shown(histogram: NDArray[np.uint32]) -> Histogram:
    filled = np.flatnonzero(histogram)
    if not len(filled):
        return Histogram([], [])
    first, last = int(filled[0]), int(filled[-1])
    return Histogram(bin_edges()[first : last + 2].tolist(), histogram[first : last + 1].tolist())
