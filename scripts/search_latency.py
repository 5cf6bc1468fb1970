"""How long searches take in synthetic databases.

Each query runs several times. Reported are the median and the 95 % quantile over the queries of each query's least wall time and
least CPU time, which other programs on the machine disturb least.

Example:
    python -m scripts.search_latency 65536 262144 --folder /tmp/databases
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feature_db import FeatureDB
from saekit.cli.output import table
from scripts.synthetic_database import SITE, make, vocabulary

_NOUNS = "mother vehicle french happiness zebra rain computer years angry dog music war legal river coffee doctor bread king"
QUERIES = _NOUNS.split()
PHRASES = ["members of the family", "places where people live", "things to eat", "the law of contracts", "how to cook rice"]
FILTERS = {"": {}, " filtered": {"where": "density < .01"}, " selected": {"where": "density < .00001 and max > 30"}}
REPEATS = 7
_SECONDS = 3.0
"""After which queries are not repeated further."""
_MB = 1 << 20

Call = Callable[[], object]


def latency(n: int, folder: Path | None = None) -> dict[str, Any]:
    """Measure a database of n features, which is made in `folder` unless it is there."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return latency(n, Path(temporary))
    path, times = folder / str(n) / "features.sqlite", {}
    if not path.exists():
        times = make(path.parent, n)
    arrays = [file for file in (path.parent / "vectors").iterdir() if file.suffix != ".npy"]
    opening = milliseconds([lambda: FeatureDB.open(path).close()] * 20)
    found: dict[str, Any] = {
        "features": n,
        **{f"{name} s": seconds for name, seconds in times.items()},
        "open": opening,
        "bytes a feature": round((path.stat().st_size + sum(file.stat().st_size for file in arrays)) / n),
        "of arrays": round(sum(file.stat().st_size for file in arrays) / n),
    }
    with FeatureDB.open(path) as db:
        started = time.perf_counter()
        db.search("first", 1)
        found["first search"] = f"{1000 * (time.perf_counter() - started):.0f}"
        found |= {name: milliseconds(calls) for name, calls in _calls(db).items()}
    return found


def _calls(db: FeatureDB) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for filtered, options in FILTERS.items():
        for kind, queries, by in (
            ("words", QUERIES, "fires_word"),
            ("meaning", QUERIES, ["near", "named", "meaning"]),
            ("all, a word", QUERIES, None),
            ("all, a phrase", PHRASES, None),
        ):
            calls[kind + filtered] = [lambda q=q, b=by, o=options: db.search(q, by=b, **o) for q in queries]  # type: ignore[misc]
    calls["like decoder"] = [lambda i=i: db.like((SITE, i)) for i in range(10)]  # type: ignore[misc]
    calls["like words"] = [lambda i=i: db.like((SITE, i), by="words") for i in range(10)]  # type: ignore[misc]
    calls["sorted"] = [lambda q=q: db.search(q, sort="density", where="density < .01") for q in QUERIES]  # type: ignore[misc]
    calls["page 100"] = [lambda q=q: db.search(q, offset=1000) for q in QUERIES]  # type: ignore[misc]
    calls["by label"] = [lambda q=q: db.search(q, where="label_source = 'words'") for q in QUERIES]  # type: ignore[misc]
    calls["no such label"] = [lambda q=q: db.search(q, where="label_source = 'human'") for q in QUERIES[:3]]  # type: ignore[misc]
    rare = " ".join(vocabulary()[5000:5200])
    long = [
        rare * (_MB // len(rare)),
        " ".join(QUERIES) * (_MB // 100),
        "a" * _MB,
        "?" * _MB,
        "\n".join(map(str, range(_MB // 6))),
        "the of and " * (_MB // 11),
    ]
    calls["1 MB"] = [lambda q=q: db.search(q) for q in long]  # type: ignore[misc]
    sql = [
        "select ref, label from features where density < .00001 limit 20",
        "select ref from words where word = 'mother' and role = 'fires_word' limit 20",
    ]
    calls["sql"] = [lambda q=q: db.sql(q) for q in sql]  # type: ignore[misc]
    return calls


def milliseconds(calls: Sequence[Call]) -> str:
    """Median and 95 % quantile over the calls: of the least wall time of each, and of the least CPU time."""
    least = np.full((2, len(calls)), np.inf)
    begun = time.perf_counter()
    for repeat in range(REPEATS):
        for i, call in enumerate(calls):
            started = time.perf_counter(), time.process_time()
            call()
            times = time.perf_counter() - started[0], time.process_time() - started[1]
            least[:, i] = np.minimum(least[:, i], 1000 * np.array(times))
        if repeat >= 1 and time.perf_counter() - begun > _SECONDS:
            break
    (p50, p95), (cpu50, cpu95) = np.quantile(least, [0.5, 0.95], axis=1).T
    return f"{p50:.1f}, {p95:.1f} (CPU {cpu50:.1f}, {cpu95:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=int, nargs="+", help="powers of two: sizes of the databases")
    parser.add_argument("--folder", type=Path, help="keep the databases here, and measure those that are here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [latency(n, options.folder) for n in options.features]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    rows = [
        {"": name, **{str(result["features"]): result.get(name, "") for result in results}}
        for name in dict.fromkeys(name for result in results for name in result)
    ]
    table(rows, title="median and 95 % quantile, in ms")


if __name__ == "__main__":
    main()
