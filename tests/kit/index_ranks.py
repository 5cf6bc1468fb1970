"""Indexing in each of several processes: `python -m tests.kit.index_ranks OUT` with the variables of torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from feature_db import BuildConfig, FeatureDB, Subject, build_all
from feature_db.index import streaming
from saekit import processes
from saekit.collective import joined
from saekit.errors import SaekitError
from saekit.names.site import Site
from tests.kit.planted import SITE, F, PlantedStore, make_lm, make_sae, make_store

OTHER = Site("mlp_out", 0)
# Few slots, so that the sketches drop much; the second number of partners makes tables, not counts of all pairs.
CONFIGS = {"pairs": BuildConfig(batch_tokens=128, slots=5, top=4, sample=6), "tables": BuildConfig(batch_tokens=300, partners=2)}


class Broken(PlantedStore):
    """A store that cannot be read beyond row 2000."""

    def stream(self, sites: list[Site], **how: Any) -> Any:
        for block in super().stream(sites, **how):
            if block.start > 2000:
                raise KeyboardInterrupt
            yield block


def index(path: Path, store: PlantedStore, config: BuildConfig, **settings: Any) -> FeatureDB:
    subjects = [Subject(make_sae(), SITE), Subject(make_sae(1), SITE, "second"), Subject(make_sae(3), OTHER)]
    where: dict[str, Any] = {"store": store, "lm": make_lm(), "vectors": path.parent / "vectors", "progress": False}
    return build_all(path, subjects, config=config, **where, **settings)


def main(out: Path) -> None:
    store = make_store(make_lm())
    report: dict[str, Any] = {}
    with joined():
        for name, config in CONFIGS.items():
            index(out / name / "f.sqlite", store, config).close()
        again = index(out / "pairs" / "f.sqlite", store, CONFIGS["pairs"])  # does nothing
        report["saes"] = len(again.saes())

        flaky = Broken(**vars(store))
        for _ in range(2):
            try:
                index(out / "resumed" / "f.sqlite", flaky, CONFIGS["pairs"], checkpoint_seconds=0)
            except KeyboardInterrupt:
                report["broken"] = report.get("broken", 0) + 1
            report["checkpoint"] = [path.name for path in (out / "resumed").glob("*.npz")]
        starts: list[int] = []
        load = streaming.Checkpoint.load
        streaming.Checkpoint.load = lambda *given: starts.append(load(*given)) or starts[-1]  # type: ignore[func-returns-value,method-assign,assignment]
        index(out / "resumed" / "f.sqlite", store, CONFIGS["pairs"]).close()
        report["start"] = starts

        acts = store.acts.copy()
        acts[int(np.flatnonzero(~store.special)[900]), F - 1] = np.nan
        try:
            index(out / "nan" / "f.sqlite", PlantedStore(**{**vars(store), "acts": acts}), CONFIGS["pairs"])
        except SaekitError as error:
            report["nan"] = type(error).__name__
    (out / f"report-{processes.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
