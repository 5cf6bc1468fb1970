"""How good the labels by rules of a workspace are on held-out documents, by method, and how long it takes to score them.

    python -m scripts.bench_labels WORKSPACE [--site SITE]

The workspace is not changed: scores are written to a copy of its database.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from feature_db import FeatureDB
from feature_db.scorers import score
from feature_db.scorers.heldout import Heldout, heldout_share
from saekit.workspace import Workspace

SCORERS = ("rule", "embedding", "surprisal")


def main() -> None:
    """Print a table by method and the seconds by scorer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--site")
    parser.add_argument("--surprisal-features", type=int, default=50, help="features of the slowest scorer")
    options = parser.parse_args()
    ws = Workspace.open(options.workspace)
    address = ws.dictionaries.address(options.site)
    lm, store, sae = ws.lm, ws.store(), ws.sae(address)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("features.sqlite", "vectors"):
            source = ws.path / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder) / name)
        with FeatureDB.open(Path(folder) / "features.sqlite") as db:
            indexed = db.dictionary(address)
            began = time.process_time()
            heldout = Heldout.read(store, lm, sae, lm.site(address.site), heldout_share(indexed, db.corpus(indexed)))
            reading = time.process_time() - began
            print(f"{len(heldout.text.counted_rows):,} held-out tokens in {len(heldout.documents)} documents, {reading:.1f} s")
            for name in SCORERS:
                chosen = range(options.surprisal_features) if name == "surprisal" else None
                began = time.process_time()
                (done,) = score(db, address, store=store, sae=sae, lm=lm, scorers=[name], features=chosen, again=True)
                seconds = time.process_time() - began - reading
                features = len({label.feature for label in db.labels_of(address, chosen)})
                per_1000 = f"{seconds / features * 1000:.1f} s per 1,000 features"
                print(f"{name}: {done.scored:,} labels of {features:,} features, {per_1000}")
            _print(db, str(address))


def _print(db: FeatureDB, address: str) -> None:
    rows = db.sql(
        "select label_source, metric, value from scores where n is not null and metric in "
        "('balanced_accuracy_hard', 'balanced_accuracy_shuffled', 'precision', 'recall', 'embedding_auroc', 'surprisal_auroc')",
        limit=10_000_000,
        seconds=60,
    ).rows
    of: dict[tuple[str, str], list[float]] = {}
    for method, metric, value in rows:
        of.setdefault((method, metric), []).append(value)
    accuracies = ("balanced_accuracy_hard", "balanced_accuracy_shuffled")
    metrics = (*accuracies, "precision", "recall", "embedding_auroc", "surprisal_auroc")
    names = ["method", "labels", "median", "> .7", "> .8", "> .9", "F1", *(name.replace("_", " ") for name in metrics)]
    print(f"| {' | '.join(names)} |")
    print("|---" * (7 + len(metrics)) + "|")
    for row in db.label_quality(address):
        more = [f"{statistics.median(of[row['method'], name]):.3f}" if (row["method"], name) in of else "" for name in metrics]
        counts = [str(row[f"over {bound}"]) for bound in (0.7, 0.8, 0.9)]
        cells = [row["method"], f"{row['labels']:,}", f"{row['median']:.3f}", *counts, f"{row['median f1']:.3f}", *more]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
