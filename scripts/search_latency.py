"""How long searches take in synthetic databases, for scripts/bench_search.py.

The words and their frequencies are those of English (the embedder's vocabulary in the order of its ids, which is about that of
frequency, with Zipf's law). A feature fires on a few words, most on rare ones. Rows are written by the project's own writer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from feature_db import FeatureDB, Label
from feature_db.index.rows import FeatureRow, Rows
from feature_db.index.write import Entry, write
from feature_db.labels.evidence import TermStat
from feature_db.meaning.embedders import embedder
from feature_db.store import vectors
from feature_db.store.examples import TOP, Window, pack
from feature_db.store.statistics import BINS, pack_histogram
from saekit.names.address import Address

_TOKENS = 100_000_000
_WORDS_A_FEATURE = 24
_WIDTH = 64
_NOUNS = "mother vehicle french happiness zebra rain computer years angry dog music war legal river coffee doctor bread king"
QUERIES = _NOUNS.split()
PHRASES = ["members of the family", "places where people live", "things to eat", "the law of contracts", "how to cook rice"]


class SyntheticRows(Rows):
    """Rows of `n` features."""

    def __init__(self, n: int) -> None:
        texts = _vocabulary()
        rank = np.arange(1, len(texts) + 1)
        count = np.maximum(_TOKENS / rank / np.log(len(texts)), 1).astype(np.int64)
        self._n, self._count = n, count
        moments = SimpleNamespace(firing=np.ones(n, np.int64))
        self.accumulators = SimpleNamespace(moments=moments, n_tokens=_TOKENS, n_documents=100_000)  # type: ignore[assignment]
        self.words = SimpleNamespace(texts=texts, vocabulary=SimpleNamespace(texts=texts))  # type: ignore[assignment]
        self.lexicon = SimpleNamespace(token_count=count, word_count=count)  # type: ignore[assignment]

    def pieces(self) -> dict[int, str]:
        return {word: f"[[{word}, 1.0]]" for word in range(len(self.words.texts))}

    def __iter__(self) -> Iterator[FeatureRow]:
        rng = np.random.default_rng(0)
        texts = self.words.texts
        histogram = np.zeros(BINS, np.uint32)
        histogram[150:190] = 20
        packed = pack_histogram(histogram)
        tokens, values = rng.integers(0, len(texts), 48), rng.random(48).astype(np.float32)
        windows = pack([Window(TOP if i < 20 else 1 + i % 10, i, i, 31, 31, tokens, values) for i in range(40)])
        for number in range(self._n):
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
            count = int(10 ** rng.uniform(2, 6))
            label = Label("words", f"fires on {named}", 0.9, named)
            context = " ".join(texts[i] for i in tokens[:16].tolist())
            density = count / _TOKENS
            yield FeatureRow(
                number,
                count,
                density,
                0.9 * density,
                1.1 * density,
                1.0,
                1.5,
                5.0,
                packed,
                "word",
                stats,
                [label],
                windows,
                context,
            )


def _vocabulary() -> list[str]:
    """Words of three letters and more of the embedder's vocabulary."""
    tokenizer: Any = embedder()._tokenizer  # type: ignore[attr-defined]
    found = (tokenizer.id_to_token(i).lstrip("▁").casefold() for i in range(tokenizer.get_vocab_size()))
    return list(dict.fromkeys(word for word in found if len(word) > 2 and word.isalpha()))


def latency(n: int) -> dict[str, Any]:
    """Measure a database of n features."""
    with tempfile.TemporaryDirectory() as folder:
        path, directions = Path(folder) / "features.sqlite", Path(folder) / "vectors" / "resid_post.0.npy"
        directions.parent.mkdir()
        file = vectors.write(directions, np.zeros((n, _WIDTH), np.float32))
        entry = Entry(
            Address.parse("resid_post.0"), "key", "fingerprint", {}, "topk", n, _WIDTH, "vectors/resid_post.0.npy",
            {"vectors": file}, "corpus", {},
        )  # fmt: skip
        started = time.perf_counter()
        write(path, entry, SyntheticRows(n))
        with FeatureDB.open(path) as db:
            db.write_words("resid_post.0")
        written = time.perf_counter() - started
        words = sum(each.stat().st_size for each in directions.parent.iterdir() if each != directions)
        return {
            "features": n,
            "build s": round(written, 1),
            "open ms": _milliseconds([lambda: FeatureDB.open(path).close() for _ in range(20)])[0],
            "bytes a feature": round((path.stat().st_size + words) / n),
            **_searches(path),
        }


def _searches(path: Path) -> dict[str, str]:
    found = {}
    with FeatureDB.open(path) as db:
        db.search("first", 1)  # opens the files
        for name, options in (("", {}), (" filtered", {"where": "density < .001 and label_source = 'words'"})):
            for kind, queries, by in (
                ("words", QUERIES, "fires_word"),
                ("meaning", QUERIES, ["near", "named", "meaning"]),
                ("all, a word", QUERIES, None),
                ("all, a phrase", PHRASES, None),
            ):
                calls: list[Callable[[], object]] = [lambda q=q, b=by, o=options: db.search(q, by=b, **o) for q in queries]
                found[kind + name] = "{:.0f}, {:.0f}".format(*_milliseconds(calls))
    return found


def _milliseconds(calls: list[Callable[[], object]]) -> tuple[float, float]:
    """Median and 95 % quantile of the time of a call."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return round(float(np.median(times)), 1), round(float(np.quantile(times, 0.95)), 1)
