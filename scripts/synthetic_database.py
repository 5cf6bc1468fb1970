"""Large feature databases with a realistic vocabulary, for scripts/search_latency.py.

The words and their frequencies are those of English (the embedder's vocabulary in the order of its ids, which is about that of
frequency, with Zipf's law). A feature fires on a few words, most on rare ones. The project's own writer writes some features. The
others are copies of these rows, each with other words of about the same frequency, which SQLite makes.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from feature_db import FeatureDB, Label
from feature_db.index.rows import FeatureRow, RowBlock, Rows
from feature_db.index.terms import Stats
from feature_db.index.write import Entry, write
from feature_db.labels.evidence import TermStat
from feature_db.meaning.embedders import embedder
from feature_db.store import connections, token_lists, vectors
from feature_db.store.examples import TOP, Window, pack
from feature_db.store.statistics import BINS, pack_histogram
from saekit.names.address import Address

SITE = "resid_post.0"
_WRITTEN = 1 << 14
"""Features that the project's writer writes."""
_TOKENS = 100_000_000
_WORDS_A_FEATURE = 24
_WIDTH = 64
_BLOCK = 256
_counts = np.zeros(BINS, np.uint32)
_counts[150:190] = 20
_HISTOGRAM = pack_histogram(_counts)


class SyntheticRows(Rows):
    """Rows of `n` features."""

    def __init__(self, n: int) -> None:
        texts = vocabulary()
        rank = np.arange(1, len(texts) + 1)
        count = np.maximum(_TOKENS / rank / np.log(len(texts)), 1).astype(np.int64)
        self._n, self._count = n, count
        moments = SimpleNamespace(firing=np.ones(n, np.int64))
        self.accumulators = SimpleNamespace(moments=moments, n_tokens=_TOKENS, n_documents=100_000)  # type: ignore[assignment]
        self.words = SimpleNamespace(texts=texts, vocabulary=SimpleNamespace(texts=texts))  # type: ignore[assignment]
        self.lexicon = SimpleNamespace(token_count=count, word_count=count)  # type: ignore[assignment]

    @cached_property
    def pieces(self) -> dict[int, str]:
        return {word: f"[[{word}, 1.0]]" for word in range(len(self.words.texts))}

    def __iter__(self) -> Iterator[RowBlock]:
        rng = np.random.default_rng(0)
        for start in range(0, self._n, _BLOCK):
            made = [self._feature(rng, number) for number in range(start, min(start + _BLOCK, self._n))]
            by_role: dict[str, list[tuple[int, int, TermStat]]] = defaultdict(list)
            for place, (_, stats) in enumerate(made):
                for rank, each in stats:
                    by_role[each.role].append((place, rank, each))
            yield RowBlock([feature for feature, _ in made], [_columns(role, rows) for role, rows in by_role.items()])

    def _feature(self, rng: np.random.Generator, number: int) -> tuple[FeatureRow, list[tuple[int, TermStat]]]:
        """A feature, and the tokens and words that it is related to, each with its rank in its role."""
        texts = self.words.texts
        items = np.unique((len(texts) ** rng.random(_WORDS_A_FEATURE)).astype(np.int64) - 1)
        rng.shuffle(items)
        share = rng.dirichlet(np.full(len(items), 0.3))
        order = np.argsort(-share)
        rows = list(zip(items[order].tolist(), share[order].tolist()))
        stats = [TermStat("fires_word", i, s, min(s + 0.05, 1.0), 3.0, 50, s) for i, s in rows]
        stats += [TermStat("fires_token", i, s, min(s + 0.05, 1.0), 3.0, 50, s) for i, s in rows[:12]]
        stats += [TermStat("peaks", i, s, None, None, 10, s) for i, s in rows[:4]]
        promoted = rng.integers(0, len(texts), 20).tolist()
        stats += [TermStat("promotes", i, 2.0, None, None, None, 0.3) for i in promoted[:10]]
        stats += [TermStat("suppresses", i, -2.0, None, None, None, 0.3) for i in promoted[10:]]
        named = " ".join(texts[i] for i, _ in rows[:2])
        label = Label("words" if rng.random() < 0.9 else "promotes", f"fires on {named}", 0.9, named)
        tokens, values = rng.integers(0, len(texts), 48), rng.random(48).astype(np.float32)
        count = int(10 ** rng.uniform(2, 7))
        feature = FeatureRow(
            number=number,
            count=count,
            density=count / _TOKENS,
            density_low=0.9 * count / _TOKENS,
            density_high=1.1 * count / _TOKENS,
            mean=1.0,
            second_moment=1.5,
            max=float(rng.lognormal(2)),
            histogram=_HISTOGRAM,
            kind="word",
            labels=[label],
            classes=[("capitalised", 0.4, 0.5, 0.3)] if number % 16 == 0 else [],
            partners=[],
            windows=pack([Window(TOP if i < 20 else 1 + i % 10, i, i, 31, 31, tokens, values) for i in range(40)]),
            context=" ".join(texts[i] for i in tokens[:16].tolist()),
        )
        places: Counter[str] = Counter()
        ranked = []
        for each in stats:
            ranked.append((places[each.role], each))
            places[each.role] += 1
        return feature, ranked


def _columns(role: str, rows: list[tuple[int, int, TermStat]]) -> Stats:
    """Entries of one role as columns."""
    feature, rank, stats = (list(column) for column in zip(*rows))
    columns = [None if column[0] is None else np.array(column) for column in list(zip(*stats))[1:]]
    return Stats(role, np.array(feature), np.array(rank), *columns)  # type: ignore[arg-type]


def vocabulary() -> list[str]:
    """Words of three letters and more of the embedder's vocabulary."""
    tokenizer: Any = embedder()._tokenizer  # type: ignore[attr-defined]
    found = (tokenizer.id_to_token(i).lstrip("▁").casefold() for i in range(tokenizer.get_vocab_size()))
    return list(dict.fromkeys(word for word in found if len(word) > 2 and word.isalpha()))


def make(folder: Path, n: int, most: int = _WRITTEN) -> dict[str, float]:
    """Make a database of n features, a power of two, in `folder`; returns the seconds of each step.

    The project's writer writes at most `most` of them, a power of two.
    """
    written, times = min(n, most), {}
    path, directions = folder / "features.sqlite", folder / "vectors" / f"{SITE}.npy"
    directions.parent.mkdir(parents=True)
    file = vectors.write(directions, np.random.default_rng(0).standard_normal((n, _WIDTH), np.float32))
    entry = Entry(
        Address.parse(SITE), "key", "fingerprint", {}, "topk", written, _WIDTH, f"vectors/{SITE}.npy", {"vectors": file},
        "corpus", {},
    )  # fmt: skip
    for name, step in (
        ("rows", lambda: write(path, entry, SyntheticRows(written))),
        ("copies", lambda: _copy(path, written, n)),
        ("arrays", lambda: _arrays(path)),
    ):
        started = time.perf_counter()
        step()
        times[name] = round(time.perf_counter() - started, 1)
    return times


def _arrays(path: Path) -> None:
    with FeatureDB.open(path) as db:
        db.write_words(SITE)


def _copy(path: Path, written: int, n: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -500000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN")
        first, labels = db.execute("SELECT (SELECT MIN(id) FROM feature), (SELECT MAX(id) FROM label)").fetchone()
        fts = db.execute("SELECT rowid, label, context FROM feature_fts ORDER BY rowid").fetchall()
        texts = vocabulary()
        rank = {text: i for i, text in enumerate(texts)}
        shift: dict[int, int] = {}
        db.create_function("shifted", 1, lambda entries: token_lists.with_terms(entries, shift))
        for copy in range(1, n // written):
            other = {text: texts[at] for text, i in rank.items() if (at := i ^ copy) < len(texts)}
            shift.update(_shift(db, other))
            by = copy * written
            _insert(db, "feature", {"id": f"id + {by}", "number": f"number + {by}"}, f"WHERE number < {written}")
            before = f"feature < {first + written}"
            _insert(db, "token_list", {"feature": f"feature + {by}", "entries": "shifted(entries)"}, f"WHERE {before}")
            _insert(db, "example", {"feature": f"feature + {by}"}, f"WHERE {before}")
            _insert(db, "class_stat", {"feature": f"feature + {by}"}, f"WHERE {before}")
            _insert(db, "label", {"id": f"id + {copy * labels}", "feature": f"feature + {by}"}, f"WHERE {before}")
            rows = ((i + by, _said(label, other), _said(context, other)) for i, label, context in fts)
            db.executemany("INSERT INTO feature_fts(rowid, label, context) VALUES (?, ?, ?)", rows)
        db.execute("UPDATE sae SET n_features = ?, n_live = ?", (n, n))
        db.execute("ANALYZE")
        db.execute("COMMIT")
    connections.seal(path)


def _shift(db: sqlite3.Connection, other: dict[str, str]) -> dict[int, int]:
    """The term of each word or token -> the term of the word that takes its place."""
    by_text = {(kind, text): i for i, kind, text in db.execute("SELECT id, kind, text FROM term")}
    return {i: by_text.get((kind, other.get(text, text)), i) for (kind, text), i in by_text.items()}


def _insert(db: sqlite3.Connection, table: str, changed: dict[str, str], source: str) -> None:
    """Insert rows of a table into it again, with these columns changed."""
    names = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
    db.execute(f"INSERT INTO {table} SELECT {', '.join(changed.get(name, name) for name in names)} FROM {table} {source}")


def _said(text: str, other: dict[str, str]) -> str:
    return " ".join(other.get(word, word) for word in text.split())
