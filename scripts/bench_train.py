"""How fast a TopK training step is, next to the peers' own, and whether it learns what a dense float32 step learns.

Every contestant does its library's whole step on the same activations: forward, backward, decoder constraint, optimizer,
counters of dead latents, AuxK where there are dead latents. They take turns (A B C A B C ...) in one process. Core-seconds
stand beside wall time: on a machine that others use as well they are the fairer measure. Peers that are not installed are
left out:

    pip install --no-deps dictionary-learning eai-sparsify schedulefree simple-parsing natsort docstring-parser

Examples:
    python scripts/bench_train.py
    python scripts/bench_train.py --width 768 --latents 24576 --reps 3
    python scripts/bench_train.py --curve
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not count as work
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # where triton is installed, sparsify would use it on a CPU, too

import torch
from torch import Tensor, nn

from saekit.sae.kernels.threads import only_blocks
from trainers import TrainConfig
from trainers.state import Training
from trainers.statistics import Statistics

Step = Callable[[Tensor], float]


@dataclass
class Task:
    """A size: width D, latents F, latents per token k, tokens per step."""

    width: int
    latents: int
    k: int
    batch: int


def activations(n: int, width: int, seed: int = 0) -> Tensor:
    """Sums of a few of 4 * width directions, as often as Zipf has it, plus noise; E||x|| = sqrt(width)."""
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


# The contestants: each maker returns a step that trains on a batch and returns its loss.


def saekit(task: Task, data: Tensor, dead: float = 0.0, **settings: object) -> Step:
    """Our step. `dead`: share of latents held dead, so that AuxK has work."""
    config = TrainConfig(n_latents=task.latents, l0=task.k, batch_size=task.batch, tokens=10**9, **settings)  # type: ignore[arg-type]
    config = config.resolve(task.width)
    training = Training(replace(config, dead_tokens=10**9), Statistics.of(data[:16384], "mean"))

    def step(x: Tensor) -> float:
        if dead:
            training.dead.dead = torch.arange(int(dead * task.latents))
            training.p.b_enc_F[training.dead.dead] = -1.0  # rarely among the largest, yet positive on some tokens
        before = training.window.squares
        with only_blocks():
            training.step(x)
        return float(training.window.squares - before) / (len(x) * training.writes.variance)

    return step


def sae_lens(task: Task, data: Tensor, autocast: bool = False) -> Step:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=task.width, d_sae=task.latents, k=task.k, device="cpu"))
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=task.batch, lr=3e-4, lr_end=3e-4, autocast=autocast
    )
    trainer = SAETrainer(config, sae, iter(()))

    def step(x: Tensor) -> float:
        output = trainer.step(x)
        trainer.n_training_steps += 1
        return float(output.losses["mse_loss"])

    return step


def dictionary_learning(task: Task, data: Tensor, autocast: bool = False) -> Step:
    if "nnsight" not in sys.modules:  # wanted by its model buffers, which a training step does not touch
        stand_in = types.ModuleType("nnsight")
        stand_in.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules["nnsight"] = stand_in
    from dictionary_learning.trainers import TopKTrainer

    trainer = TopKTrainer(
        k=task.k,
        steps=100_000,
        activation_dim=task.width,
        dict_size=task.latents,
        layer=0,
        lm_name="none",
        device="cpu",
        warmup_steps=10,
    )
    count = iter(range(10**9))

    def step(x: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return float(trainer.update(next(count), x))

    return step


def sparsify(task: Task, data: Tensor, optimizer: str = "signum") -> Step:
    """Its trainer's step, in its order: decoder norm, forward, counters, backward, projection, optimizer."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=task.latents, k=task.k)
    coder = SparseCoder(task.width, config, "cpu", torch.float32)
    scale = (task.latents / 2**14) ** 0.5
    if optimizer == "signum":
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        opt = ScheduleFreeWrapper(SignSGD([{"params": coder.parameters(), "lr": 5e-3 / scale}]), momentum=0.95)
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=2e-4 / scale)
    since, fired = torch.zeros(task.latents, dtype=torch.long), torch.zeros(task.latents, dtype=torch.bool)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        output = coder(x=x, y=x, dead_mask=None)
        fired[output.latent_indices.flatten()] = True
        output.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        since.add_(len(x))
        since[fired] = 0
        fired.zero_()
        return float(output.fvu.detach())

    return step


def dense(task: Task, data: Tensor, lr: float = 3e-4, seed: int = 0, nudge: float = 0.0, scaled: bool = True) -> Step:
    """Plain PyTorch with our rules (start, loss, schedule-free Adam, unit rows), everything dense in float32."""
    facts = Statistics.of(data[:16384], "mean")
    W = torch.randn(task.latents, task.width, generator=torch.Generator().manual_seed(seed))
    W = W / W.norm(dim=1, keepdim=True) * (1 + nudge)
    start = (W, torch.zeros(task.latents), W, facts.centre_D)
    W_enc, b_enc, W_dec, b_dec = params = [nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = torch.optim.Adam(params, lr=lr, eps=6.25e-10)

    def step(x: Tensor) -> float:
        x = x * facts.scale
        values, indices = torch.relu((x - b_dec) @ W_enc.T + b_enc).topk(task.k, sorted=False)
        code = x.new_zeros(len(x), task.latents).scatter(1, indices, values)
        loss = (code @ W_dec + b_dec - x).square().sum(1).mean() / facts.variance
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        return loss.item()

    return step


@dataclass
class Sample:
    """One step's cost: seconds on the clock, core-seconds of ours, share of the machine that others used."""

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


def speed(task: Task, reps: int, wanted: list[str]) -> dict[str, dict[str, float]]:
    """Alternating timings of everybody at one size; prints a table."""
    data = activations(4 * task.batch, task.width)
    batches = data.split(task.batch)
    makers: dict[str, Callable[[], Step]] = {
        "saekit": lambda: saekit(task, data),
        "saekit, no bf16 screen": lambda: saekit(task, data, screen=False),
        "saekit, 1 % dead (AuxK)": lambda: saekit(task, data, dead=0.01),
        "sparsify (signum)": lambda: sparsify(task, data),
        "sparsify (adam)": lambda: sparsify(task, data, "adam"),
        "dictionary_learning": lambda: dictionary_learning(task, data),
        "dictionary_learning, bf16": lambda: dictionary_learning(task, data, autocast=True),
        "sae-lens": lambda: sae_lens(task, data),
        "sae-lens, bf16": lambda: sae_lens(task, data, autocast=True),
        "dense PyTorch": lambda: dense(task, data),
    }
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        if wanted and not any(part in name for part in wanted):
            continue
        try:
            torch.manual_seed(0)
            steps[name] = make()
            steps[name](batches[0])  # compiles, allocates
            steps[name](batches[1])
        except ImportError as error:
            print(f"  {name}: left out, {error}", file=sys.stderr)
            steps.pop(name, None)
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    for rep in range(reps):
        for name, step in steps.items():
            samples[name].append(measure(lambda step=step, rep=rep: step(batches[rep % 4])))  # type: ignore[misc]
    result = {
        name: {
            "cpu_ms": 1e3 * statistics.median(s.cpu for s in rows),
            "wall_ms": 1e3 * statistics.median(s.wall for s in rows),
            "best_wall_ms": 1e3 * min(s.wall for s in rows),
            "foreign": statistics.mean(s.foreign for s in rows),
        }
        for name, rows in samples.items()
    }
    peers = {name: row for name, row in result.items() if not name.startswith(("saekit", "dense"))}
    print(f"\nTopK step, width {task.width}, {task.latents} latents, k {task.k}, batch {task.batch}; medians of {reps}")
    print(f"{'':28}{'core-ms':>9}{'wall ms':>9}{'best':>8}{'others':>8}   ours is faster by (core-ms, wall, best wall)")
    ours = result.get("saekit")
    for name, row in result.items():
        ratios = [row[key] / ours[key] for key in ("cpu_ms", "wall_ms", "best_wall_ms")] if ours and name in peers else []
        times = f"{row['cpu_ms']:9.0f}{row['wall_ms']:9.0f}{row['best_wall_ms']:8.0f}{row['foreign']:8.0%}"
        print(f"{name:28}{times}   " + "  ".join(f"{ratio:.2f}x" for ratio in ratios))
    if ours and peers:
        fastest = min(peers, key=lambda name: peers[name]["cpu_ms"])
        print(f"fastest peer: {fastest}: {peers[fastest]['cpu_ms'] / ours['cpu_ms']:.2f}x our core-seconds, ", end="")
        print(f"{peers[fastest]['wall_ms'] / ours['wall_ms']:.2f}x our wall time")
    return result


def curve(steps: int = 300) -> dict[str, list[float]]:
    """Loss curves of our step and of dense float32 from the same start on the same batches; prints how far apart they are.

    What counts as noise: the dense run once more from weights changed in the last digit, and from another seed.
    """
    task = Task(width=256, latents=2048, k=32, batch=512)
    data = activations(task.batch * steps, task.width, seed=7)
    lr = 1e-3
    settings = {"lr": lr, "warmup": 0.0, "decay": 0.0, "b_dec": "mean"}
    runs = {
        "dense float32": dense(task, data, lr),
        "dense, last digit": dense(task, data, lr, nudge=1e-7),
        "dense, other seed": dense(task, data, lr, seed=1),
        "saekit": saekit(task, data, screen=False, **settings),
        "saekit, bf16 screen": saekit(task, data, screen=True, **settings),
    }
    curves = {name: [step(x) for x in data.split(task.batch)] for name, step in runs.items()}
    reference = torch.tensor(curves["dense float32"], dtype=torch.float64)
    print(f"\nLoss over {steps} steps (width 256, 2048 latents, k 32, batch 512), against dense float32")
    for name, losses in curves.items():
        own = torch.tensor(losses, dtype=torch.float64)
        apart = ((own - reference) / reference).abs()
        end = (own[-50:].mean() / reference[-50:].mean() - 1).item()
        print(f"  {name:22} last {own[-1]:.5f}  apart: mean {apart.mean():.1e}, max {apart.max():.1e}, last 50 steps {end:+.4%}")
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of contestants")
    parser.add_argument("--curve", action="store_true", help="compare loss curves instead of times")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    if options.curve:
        result: object = curve()
    else:
        result = speed(Task(options.width, options.latents, options.k, options.batch), options.reps, options.only)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
