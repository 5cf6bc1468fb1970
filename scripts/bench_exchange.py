"""Measure the time of the processor that exports and imports take, and the time to save the state of an index::

python scripts/bench_exchange.py WORKSPACE
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from feature_db import FeatureDB
from feature_db.exchange import export, import_features
from feature_db.index.accumulators import Accumulators, BuildConfig
from saekit import files

WIDTHS = (1024, 4096, 16384)
VOCABULARY = 50_304


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    path = parser.parse_args().workspace / "features.sqlite"
    with tempfile.TemporaryDirectory(dir=path.parent) as name, FeatureDB.open(path) as database:
        folder = Path(name)
        for form in ("neuronpedia", "neuronpedia-upload", "saedashboard", "parquet"):
            written = []
            seconds = timed(lambda f=form, w=written: w.extend(export(database, folder / f, f, progress=False)))  # type: ignore[misc]
            features = sum(each.features for each in written)
            size = sum(file.stat().st_size for file in (folder / form).rglob("*") if file.is_file())
            print(f"export {form:<20} {1000 * seconds / features:6.2f} ms a feature, {size / features / 1000:6.1f} kB a feature")
        seconds = timed(lambda: import_features(folder / "new.sqlite", folder / "neuronpedia", progress=False))
        print(f"import neuronpedia          {1000 * seconds / features:6.2f} ms a feature")
        for width in WIDTHS:
            state = Accumulators(width, VOCABULARY, BuildConfig()).state()
            size = sum(array.nbytes for array in state.values())

            def save(state: dict[str, np.ndarray] = state) -> None:
                with files.whole(folder / "state.npz") as file:
                    np.savez(file, **state)  # type: ignore[arg-type]

            print(f"checkpoint of {width:>6} features: {size / 2**20:6.0f} MiB, {timed(save, time.monotonic):5.2f} s")


def timed(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that `work` takes: of the processor, unless another clock is given."""
    begun = clock()
    work()
    return clock() - begun


if __name__ == "__main__":
    main()
