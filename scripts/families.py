"""Which sites saekit offers on every family of causal language models in transformers, checked on tiny random models.

For each entry of transformers' mapping of causal language models, a tiny random model is built, attached and checked:

    bare forward    the bits of transformers' own logits, after attaching, while every site is read, and afterwards
    own value       every site offered, patched with its own value, changes no bit
    other run       the whole residual stream of another run gives that run's logits
    hidden states   the residual stream equals the hidden states that transformers returns
    attentions      patterns equal the attentions that transformers returns
    left pads       rows of a left-padded batch give what they give alone
    cache           continuations with a cache equal recomputation without one, plain and edited

Attaching checks the identities of all sites besides (saekit/lm/checks.py). Families run in worker processes: a crash is a row.

Examples:
    python scripts/families.py
    python scripts/families.py --family gpt_oss --family qwen3_next --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scripts.family_page import details, empty_row, markdown, summary, summary_lines

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 120.0
"""A family that takes longer is a row with that error."""


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        _work()
        return
    from scripts.tiny_families import VARIANTS, family_names, wrapper_names

    known = [*family_names(), *VARIANTS, *wrapper_names()]
    names = arguments.family or known
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"transformers has no language model named {', '.join(unknown)}.")
    rows = check_all(names, arguments.jobs, quiet=arguments.json)
    if arguments.json:
        print(json.dumps({"families": rows, "summary": summary(rows)}, indent=1))
    else:
        for line in summary_lines(rows):
            print(line)
    if not arguments.family:
        Path(arguments.out).write_text(markdown(rows), encoding="utf-8")
        print(f"{arguments.out} written.", file=sys.stderr)
    elif not arguments.json:
        for row in rows:
            print(*details(row), sep="\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", metavar="NAME", help="check this family only; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="worker processes (default: %(default)s)")
    parser.add_argument("--out", default=str(ROOT / "FAMILIES.md"), help="the table, written when all families were checked")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def check_all(names: Sequence[str], jobs: int, *, quiet: bool = False) -> list[dict[str, Any]]:
    """One row for each family, in the order given, from worker processes that are started again after a crash."""
    from saekit.progress import track

    waiting: Queue[str] = Queue()
    for name in names:
        waiting.put(name)
    rows: dict[str, dict[str, Any]] = {}

    def serve() -> None:
        worker: _Worker | None = None
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                break
            worker = worker if worker is not None and worker.alive else _Worker()
            rows[name] = worker.check(name)
        if worker is not None:
            worker.end()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(max(1, min(jobs, len(names))))]
    with track("checking", len(names), unit="families", enabled=not quiet) as bar:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.2)
            bar.update(len(rows))
    return [rows[name] for name in names]


class _Worker:
    """A process that checks families one after another."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def check(self, name: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Timer(_SECONDS, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            in_time = late.is_alive()
            late.cancel()
        if line:
            row: dict[str, Any] = json.loads(line)
            return row
        code = self._process.wait()
        error = f"the process ended with status {code}" if in_time else f"no answer within {_SECONDS:.0f} seconds"
        return empty_row(name) | {"status": "crashed", "error": error}

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _work() -> None:
    """Read names from stdin and write rows to stdout; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    from scripts.family_checks import check_family

    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(check_family(line.strip())) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
