"""Compare two checkouts of saekit: import time, caching, training, indexing, search, and a steered generation.

Each step is one process. The checkouts alternate (A B A B), so that changes in the speed of the machine affect both. The script
prints the median over pairs of the ratio B / A, for wall seconds and for CPU seconds, and the peak memory of a process::

    git worktree add ../before v0.1.0
    python scripts/bench_versions.py ../before . --rounds 5
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = ["lab", "--site", "resid_post.2"]


@dataclass(frozen=True)
class Step:
    """One step of the benchmark.

    Attributes:
        name: name in the table.
        arguments: arguments of `saekit`; `WS` stands for the workspace.
        code: Python code to run instead of a command.
    """

    name: str
    arguments: tuple[str, ...] = ()
    code: str = ""


STEPS = [
    Step("import saekit", code="import saekit"),
    Step("saekit --help", ("--help",)),
    Step("cache 200k tokens", ("cache", *MODEL, "--tokens", "200000", "--out", "WS")),
    Step("train topk, 1M tokens", ("train", "WS", "--latents", "2048", "--k", "16", "--train-tokens", "1000000")),
    Step(
        "train jumprelu, 500k tokens",
        ("train", "WS", "--arch", "jumprelu", "--latents", "2048", "--l0", "16", "--train-tokens", "500000", "--name", "jump"),
    ),
    Step("index 2048 features", ("index", "WS")),
    Step("eval", ("eval", "WS")),
    Step("search", ("search", "WS", "French")),
    Step("steer", ("steer", "WS", "--feature", "7", "Once upon a time")),
    Step("verify", ("verify", "WS")),
]


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a step."""

    wall: float
    processor: float
    peak_mib: float


def run(checkout: Path, step: Step, folder: Path) -> Cost:
    """Run a step of one checkout in `folder`.

    Raises:
        SystemExit: the step failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    arguments = (
        ["-c", step.code] if step.code else ["-m", "saekit", *(str(folder / "ws") if a == "WS" else a for a in step.arguments)]
    )
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{checkout}: {step.name} failed:\n{output.decode(errors='replace')}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout A")
    parser.add_argument("after", type=Path, help="checkout B")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs; the median is printed [default: 3]")
    options = parser.parse_args()
    checkouts = (options.before, options.after)
    costs: dict[str, tuple[list[Cost], list[Cost]]] = {step.name: ([], []) for step in STEPS}
    for number in range(options.rounds + 1):  # the first round is a warm-up: it compiles kernels and fills the page cache
        folders = [Path(tempfile.mkdtemp(prefix="saekit-bench-")) for _ in checkouts]
        for step in STEPS:
            for side in (0, 1):
                cost = run(checkouts[side], step, folders[side])
                if number:
                    costs[step.name][side].append(cost)
        for folder in folders:
            shutil.rmtree(folder)
    load = os.getloadavg()[0]
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {load:.1f}, {options.rounds} pairs, B / A, medians")
    print(f"{'step':30} {'wall A':>8} {'wall B':>8} {'ratio':>6} {'core-s':>7} {'MiB A':>7} {'MiB B':>7}")
    for name, (before, after) in costs.items():
        wall = statistics.median(b.wall / a.wall for a, b in zip(before, after))
        processor = statistics.median(b.processor / a.processor for a, b in zip(before, after))
        walls = [statistics.median(cost.wall for cost in side) for side in (before, after)]
        peaks = [max(cost.peak_mib for cost in side) for side in (before, after)]
        print(f"{name:30} {walls[0]:8.2f} {walls[1]:8.2f} {wall:6.2f} {processor:7.2f} {peaks[0]:7.0f} {peaks[1]:7.0f}")


if __name__ == "__main__":
    main()
