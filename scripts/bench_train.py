"""Compare training steps with other libraries: speed, memory, and the loss curve against a dense step.

Every candidate runs the whole step of its library on the same activations: forward, backward, decoder constraint, optimizer,
counters of dead latents, and AuxK (if the library uses it by default) with 1 % of the latents dead. The candidates alternate
(A B C A B C ...) in one process. The script prints core-seconds besides wall time, since core-seconds depend less on other
processes. JumpReLU, Gated and standard dictionaries have an L0 of 128, the others k = 32. Libraries that are not installed are
skipped:

    pip install --no-deps dictionary-learning eai-sparsify schedulefree simple-parsing natsort docstring-parser

Examples:
    python scripts/bench_train.py                            # every architecture at 512x8192, and TopK at 768x24576
    python scripts/bench_train.py --arch jumprelu gated --shape 768x24576 --reps 3
    python scripts/bench_train.py --quick                    # small, to check that every candidate runs
    python scripts/bench_train.py --memory
    python scripts/bench_train.py --curves
    python scripts/bench_train.py --profile --arch gated     # where our step spends its time
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import json
import multiprocessing
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not use CPU time

import torch
from peers import PEERS, Step, Task
from torch import Tensor, nn

from saekit.sae.kernels.threads import only_blocks
from trainers import TrainConfig
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState
from trainers.objectives.base import Now, Outcome
from trainers.step.parameters import Parameters

ARCHITECTURES = ("topk", "transcoder", "skip_transcoder", "batchtopk", "matryoshka", "jumprelu", "gated", "standard")
PENALISED = ("jumprelu", "gated", "standard")
CURVE = {"width": 256, "latents": 2048, "k": 32, "batch": 512}  # sizes with --curves
BATCHES = 4  # distinct batches; a candidate cycles through them


# Data and our own step


def activations(n: int, width: int, seed: int = 0) -> Tensor:
    """Sums of a few of 4 * width directions with Zipfian frequencies, plus noise, scaled to E||x|| = sqrt(width)."""
    directions = nn.functional.normalize(torch.randn(4 * width, width, generator=torch.Generator().manual_seed(1234)), dim=1)
    rate = (0.4 * torch.arange(1, 4 * width + 1).float() ** -0.7).clamp_min(0.004)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, n, 4096):
        rows = min(4096, n - start)
        strength = (1 + 0.3 * torch.randn(rows, 4 * width, generator=generator)).clamp_min(0)
        x = (strength * (torch.rand(rows, 4 * width, generator=generator) < rate)) @ directions
        parts.append(x + 0.05 * x.std() * torch.randn(rows, width, generator=generator))
    x = torch.cat(parts)
    return x * (width**0.5 / x.norm(dim=1).mean())


def targets(task: Task, x: Tensor) -> Tensor:
    """The targets of the dictionary. For a transcoder, the output of a random MLP on x."""
    if not task.transcodes:
        return x
    generator = torch.Generator().manual_seed(99)
    up, down = (torch.randn(task.width, task.width, generator=generator) for _ in range(2))
    y = torch.relu(x @ up) @ down
    return y * (task.width**0.5 / y.norm(dim=1).mean())


def training(task: Task, x: Tensor, y: Tensor, **settings: object) -> TrainState:
    arch = "topk" if task.transcodes else task.arch
    settings = {"b_dec": "mean", "k_start": task.k, "tokens": 10**9, "dead_tokens": 10**9, "batch_size": task.batch, **settings}
    skip = task.arch == "skip_transcoder"
    config = TrainConfig(n_latents=task.latents, arch=arch, l0=task.k, skip=skip, **settings)  # type: ignore[arg-type]
    reads, writes = (DataScaling.of(data[:16384], "mean") for data in (x, y))
    return TrainState(config.resolve(task.width), reads, writes if task.transcodes else None)


def saekit(task: Task, x: Tensor, y: Tensor, **settings: object) -> Callable[[Tensor, Tensor], Outcome]:
    it = training(task, x, y, **settings)
    dead = torch.arange(task.latents)[task.dead_latents]

    def step(x: Tensor, y: Tensor) -> Outcome:
        it.dead.dead = dead
        # These latents rarely fire, but are positive on some tokens.
        it.p.b_enc_F[dead] = torch.minimum(it.p.b_enc_F[dead], -it.p.W_enc_FD[dead].norm(dim=1))
        with only_blocks():
            return it.step(x, y if task.transcodes else None)

    return step


# Speed


@dataclass
class Sample:
    """The cost of one step: wall seconds, core-seconds of this process, share of the machine that other processes used."""

    wall: float
    cpu: float
    foreign: float


def measure(run: Callable[[], object]) -> Sample:
    ticks, cores = os.sysconf("SC_CLK_TCK"), os.cpu_count() or 1

    def busy() -> float:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + irq + softirq) / ticks

    others, cpu, wall = busy(), time.process_time(), time.perf_counter()
    run()
    wall, cpu, others = time.perf_counter() - wall, time.process_time() - cpu, busy() - others
    return Sample(wall, cpu, max(0.0, others - cpu) / (wall * cores))


def contestants(task: Task, x: Tensor, y: Tensor, wanted: list[str]) -> dict[str, Step]:
    """The candidates that have the architecture, warmed up."""
    makers: dict[str, Callable[[], Step | None]] = {"saekit": lambda: saekit(task, x, y)}
    makers |= {name: (lambda make=make: make(task)) for name, make in PEERS.items()}  # type: ignore[misc]
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        if wanted and not any(part in name for part in wanted):
            continue
        torch.manual_seed(0)
        try:
            step = make()
        except ImportError as error:
            print(f"  {name}: skipped, {error}", file=sys.stderr)
            continue
        if step is not None:
            steps[name] = step
            for i in range(2):  # compiles, allocates
                step(x[i * task.batch :][: task.batch], y[i * task.batch :][: task.batch])
    return steps


def speed(task: Task, reps: int, wanted: list[str]) -> dict[str, dict[str, float]]:
    """Time all candidates in alternation. Prints a table."""
    x = activations(BATCHES * task.batch, task.width)
    y = targets(task, x)
    batches = list(zip(x.split(task.batch), y.split(task.batch)))
    steps = contestants(task, x, y, wanted)
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    for rep in range(reps):
        for name, step in steps.items():
            samples[name].append(measure(lambda step=step, rep=rep: step(*batches[rep % BATCHES])))  # type: ignore[misc]
    result = {name: _summary(rows) for name, rows in samples.items()}
    ours, peers = result.get("saekit"), {name: row for name, row in result.items() if name != "saekit"}
    print(f"\n{task.arch}, width {task.width}, {task.latents} latents, batch {task.batch}; medians of {reps}", end="")
    if "saekit" in steps:
        outcome = steps["saekit"](*batches[0])
        assert isinstance(outcome, Outcome)
        print(f"; L0 of the last step {float((outcome.code.values_N > 0).sum()) / task.batch:.1f}", end="")
    print()
    print(f"{'':26}{'core-ms':>9}{'lowest':>8}{'highest':>8}{'wall ms':>9}{'others':>8}   ours is faster by (core-ms, wall)")
    for name, row in result.items():
        times = f"{row['cpu_ms']:9.0f}{row['cpu_low']:8.0f}{row['cpu_high']:8.0f}{row['wall_ms']:9.0f}{row['foreign']:8.0%}"
        ratios = [row[key] / ours[key] for key in ("cpu_ms", "wall_ms")] if ours and name in peers else []
        print(f"{name:26}{times}   " + "  ".join(f"{ratio:.2f}x" for ratio in ratios), flush=True)
    return result


def _summary(rows: list[Sample]) -> dict[str, float]:
    cpu = [1e3 * sample.cpu for sample in rows]
    return {
        "cpu_ms": statistics.median(cpu),
        "cpu_low": min(cpu),
        "cpu_high": max(cpu),
        "wall_ms": 1e3 * statistics.median(sample.wall for sample in rows),
        "foreign": statistics.mean(sample.foreign for sample in rows),
    }


def overview(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """One line for each task: the fastest other library, and its slowdown relative to saekit."""
    print(f"\n{'':26}{'ours, core-ms':>14}{'fastest peer':>28}{'core-ms':>9}{'wall':>8}{'sae-lens':>10}")
    for name, result in results.items():
        peers = {peer: row for peer, row in result.items() if peer != "saekit"}
        if not peers or "saekit" not in result:
            continue
        ours, best = result["saekit"], min(peers, key=lambda peer: peers[peer]["cpu_ms"])
        ratios = [peers[best][key] / ours[key] for key in ("cpu_ms", "wall_ms")]
        lens = f"{peers['sae-lens']['cpu_ms'] / ours['cpu_ms']:9.2f}x" if "sae-lens" in peers else ""
        print(f"{name:26}{ours['cpu_ms']:14.0f}{best:>28}{ratios[0]:8.2f}x{ratios[1]:7.2f}x{lens}")


# Memory


def memory(tasks: list[Task]) -> dict[str, float]:
    """Peak memory of saekit's steps, each in its own process. Unit: parameters, optimizer and one (batch, latents) buffer."""
    ratios = {}
    for task in tasks:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, unit = pool.apply(_peak, (task,))
        ratios[f"{task.arch} {task.width}x{task.latents}"] = peak / unit
        print(
            f"{task.arch:16}{task.width}x{task.latents}: peak {peak / 2**20:.0f} MiB, {peak / unit:.2f} of the unit", flush=True
        )
    return ratios


def _peak(task: Task) -> tuple[int, int]:
    def now(key: str) -> int:
        return (
            int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1])
            << 10
        )

    small = replace(task, width=64, latents=512, batch=128, k=8)
    x = activations(128, 64)
    saekit(small, x, targets(small, x))(x, targets(small, x))  # loads code and kernels
    x = activations(task.batch, task.width)
    y = targets(task, x)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = now("VmRSS")
    step = saekit(task, x, y)
    for _ in range(3):
        step(x, y)
    weights = 2 * task.width * task.latents * 4
    return now("VmHWM") - before, 3 * weights + task.batch * task.latents * 4


# Loss curves


def curves(task: Task, steps: int = 300) -> dict[str, list[float]]:
    """Compare the loss curves of saekit's step and of the dense formula, from the same start and on the same batches.

    A second dense run, from weights changed in the last digit, shows the size of differences by rounding.
    """
    x = activations(task.batch * steps, task.width, seed=7)
    y = targets(task, x)
    y = y[:, 1:] if task.transcodes else y  # the formula treats targets of another width as a transcoder
    settings = {"lr": 1e-3, "warmup": 0.0, "decay": 0.0, "tokens": task.batch * steps, "dead_tokens": task.batch}
    runs = {
        "dense float32": _dense(training(task, x, y, backend="torch", **settings)),
        "dense, last digit": _dense(training(task, x, y, backend="torch", **settings), nudge=1e-7),
        "saekit": training(task, x, y, screen=False, **settings),
        "saekit, bf16 screen": training(task, x, y, screen=True, **settings),
    }
    found = {name: _losses(it, task, x, y) for name, it in runs.items()}
    losses = {name: values for name, (values, _) in found.items()}
    reference = _smooth(losses["dense float32"])
    print(f"\n{task.arch}: loss over {steps} steps of {task.batch} ({task.width}x{task.latents}, L0 {task.k}), against dense")
    for name, (values, most) in found.items():
        apart = (_smooth(values) / reference - 1).abs()
        last = f"last {values[-1]:.4f}, at most {most} dead"
        print(f"  {name:20} {last:30} smoothed over 20 steps: largest {apart.max():.1e}, last {apart[-1]:.1e}")
    return losses


def _losses(it: TrainState, task: Task, x: Tensor, y: Tensor) -> tuple[list[float], int]:
    """The loss of every step, and the largest number of dead latents."""
    found, most = [], 0
    with only_blocks():
        for x_BD, y_BE in zip(x.split(task.batch), y.split(task.batch)):
            outcome = it.step(x_BD, y_BE if task.transcodes else None)
            found.append(float(outcome.squares) / (len(x_BD) * it.writes.variance))
            most = max(most, len(it.dead.dead))
    return found, most


def _dense(it: TrainState, nudge: float = 0.0) -> TrainState:
    """The same training with the reference loss of the tests: the dense formula of the paper."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.kit import dense

    dense.VARIANCE = it.writes.variance
    its_own, weight = it.objective.loss, getattr(it.objective, "penalty", lambda now: 0.0)

    def loss(p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        with torch.no_grad():
            outcome = its_own(p, x_BD, y_BE, now)  # firing latents
        return outcome._replace(loss=dense.loss_of(it.config, now.dead, weight(now))(p, x_BD, y_BE))

    it.objective.loss = loss  # type: ignore[method-assign]
    for tensor in it.p.values():
        tensor *= 1 + nudge
    return it


def _smooth(losses: list[float], steps: int = 20) -> Tensor:
    return torch.tensor(losses, dtype=torch.float64).unfold(0, steps, 1).mean(1)


# The command


def profile(task: Task, steps: int = 5) -> None:
    x = activations(task.batch, task.width)
    y = targets(task, x)
    step = saekit(task, x, y)
    step(x, y)
    with cProfile.Profile() as found:
        for _ in range(steps):
            step(x, y)
    print(f"\n{task.arch} {task.width}x{task.latents}, {steps} steps")
    pstats.Stats(found).strip_dirs().sort_stats("tottime").print_stats(18)


def tasks(options: argparse.Namespace) -> list[Task]:
    batch = options.batch or (512 if options.quick else 4096)
    shapes = {arch: ["128x1024"] if options.quick else ["512x8192"] for arch in ARCHITECTURES}
    if not options.quick:
        shapes["topk"].append("768x24576")
    found = []
    for arch in options.arch:
        for shape in options.shape or shapes[arch]:
            width, latents = map(int, shape.split("x"))
            k = options.k or (128 if arch in PENALISED and not options.quick else 32)
            found.append(Task(arch, width, latents, k, batch, options.dead))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="*", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--shape", nargs="*", help="WIDTHxLATENTS")
    parser.add_argument("--k", type=int, help="latents per token")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--dead", type=float, default=0.01, help="share of latents that are kept dead")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="only candidates whose names contain one of these")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of times")
    parser.add_argument("--curves", action="store_true", help="loss curves instead of times")
    parser.add_argument("--profile", action="store_true", help="profile of saekit's step")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    result: object = None
    if options.curves:
        sizes = {"width": 128, "latents": 512, "k": 16, "batch": 128} if options.quick else CURVE
        result = {arch: curves(Task(arch, **sizes), 60 if options.quick else 300) for arch in options.arch}
    elif options.memory:
        result = memory(tasks(options))
    elif options.profile:
        for task in tasks(options):
            profile(task)
    else:
        found = {
            f"{task.arch} {task.width}x{task.latents}": speed(task, 2 if options.quick else options.reps, options.only)
            for task in tasks(options)
        }
        overview(found)
        result = found
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
