"""Labels by a language model behind an endpoint on this machine that has faults: what every feature ends with, and how fast.

    python -m scripts.bench_autolabel WORKSPACE [--faults .4] [--concurrency 16]

The endpoint answers at once with a label that names the first marked words, or with a fault: 503, 429, a reset, a cut answer, no
JSON, prose in place of a label. The workspace is not changed: labels are written to a copy of its database.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from feature_db import FeatureDB
from feature_db.autolabel.labelling import LabelSettings, autolabel, plan
from feature_db.chat.endpoint import Endpoint
from feature_db.chat.limits import Patience, Patient
from saekit.names.ref import Ref
from tests.kit.chat_server import ChatServer, Messages

FAULTS = ("503", "429:0.1", "reset", "truncate", "no json", "prose")


def answer(messages: Messages) -> str:
    """A label from the first marked words."""
    return f"LABEL: words like {messages[1]['content'].split('<<')[1].split('>>')[0].strip() or 'spaces'}"


def main() -> None:
    """Print one line about the run, and one about the same command again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--faults", type=float, default=0.4, help="share of the requests that fail")
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    chance, settings = random.Random(0), LabelSettings()
    with tempfile.TemporaryDirectory() as folder, ChatServer(answer) as server:
        path = Path(folder) / "features.sqlite"
        shutil.copy(options.workspace / "features.sqlite", path)
        shutil.copytree(options.workspace / "vectors", path.parent / "vectors")
        server.plan(*(chance.choice(FAULTS) if chance.random() < options.faults else "ok" for _ in range(100_000)))
        with FeatureDB.open(path) as db:
            (sae, *_) = db.saes()
            refs = [Ref.feature(sae.dictionary, int(i)) for i in db.densities(sae.address).nonzero()[0]]
            model = Patient(Endpoint(server.url, "bench", concurrency=options.concurrency), patience=Patience(first=0.05))
            started, cpu = time.perf_counter(), time.process_time()
            outcome = autolabel(db, plan(db, refs, "bench", settings.prompt).todo, model, settings)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            left = plan(db, refs, "bench", settings.prompt)
    ends = f"{len(outcome.labelled):,} labelled, {len(outcome.failed):,} failed with a reason"
    cost = f"{seconds:.1f} s, {cpu / len(refs) * 1000:.1f} ms of CPU a feature with the server"
    print(f"{len(refs):,} features, {len(server.requests):,} requests: {ends}; {cost}")
    print(f"again: {len(left.todo)} to ask about, {len(left.labelled):,} labelled, {len(left.failed):,} failed before")


if __name__ == "__main__":
    main()
