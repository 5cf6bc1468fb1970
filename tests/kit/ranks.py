"""The program of each process in distributed tests: `python ranks.py OUT` with the variables of torchrun."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from saekit.errors import ConfigError, SaekitError
from saekit.names.site import Site
from tests.kit.memory import SITE, Memory
from tests.kit.runs import CONFIG, Breaks, D, F, sparse_data
from trainers import Plan, Route, train_all
from trainers.loop.data_scaling import DataScaling
from trainers.loop.state import TrainState
from trainers.step import distributed as parallel
from trainers.step.distributed import Rows
from trainers.step.parameters import Parameters

OTHER = Site("mlp_out", 0)
# 30 full steps, and a last step of a single row, which is fewer than the processes.
SHORT = dataclasses.replace(CONFIG, tokens=7_681, dead_tokens=1_000, log_tokens=256, checkpoint_tokens=3_000, eval_tokens=500)
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {},
    "abstopk": {"arch": "abstopk"},
    "batchtopk": {"arch": "batchtopk"},
    "matryoshka": {"arch": "matryoshka"},
    "jumprelu": {"arch": "jumprelu"},
    "standard": {"arch": "standard"},
    "gated": {"arch": "gated"},
    "transcoder": {"skip": True, "l0": 60},  # more than one of two processes has latents
    "topk-torch": {"backend": "torch"},
    "jumprelu-torch": {"arch": "jumprelu", "backend": "torch"},
    "transcoder-torch": {"arch": "gated", "skip": True, "backend": "torch"},
}
SHARDED = {
    f"{name}-shard": {**variant, "shard": True} for name, variant in VARIANTS.items() if name not in ("matryoshka", "gated")
}
RESUMED = {name: (VARIANTS | SHARDED)[name] for name in ("batchtopk", "jumprelu-shard", "topk-torch-shard")}


def plans(out: Path, variants: dict[str, dict[str, Any]]) -> list[Plan]:
    routes = {name: Route.parse(SITE, OTHER if "transcoder" in name else None) for name in variants}
    return [Plan(routes[name], dataclasses.replace(SHORT, **variant), out / name) for name, variant in variants.items()]


def data(n: int = 6_000, seed: int = 0) -> dict[Site, Tensor]:
    return {SITE: sparse_data(n, seed), OTHER: 3 * sparse_data(n, seed + 50) - 5}


def train_plans(plans: list[Plan], source: Memory | None = None) -> list[SaekitError | None]:
    heldout = Memory(data(1_000, seed=1), 500, epochs=1)
    return train_all(source or Memory(data(), 256), plans, heldout=heldout, progress=False)


def break_off(plans: list[Plan]) -> None:
    """Train until shortly after the second checkpoint."""
    source = Breaks(sparse_data(10), 256, after=27)
    source.acts = data()
    try:
        train_plans(plans, source)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not broken off")


def told(work: Callable[[], object]) -> str:
    """The error of a failing call, as text."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# The work of the processes. Each function returns JSON values for the report.


def trains(out: Path) -> object:
    return [str(error) for error in train_plans(plans(out, VARIANTS | SHARDED)) if error]


def resumes(out: Path) -> object:
    break_off(plans(out / "left", RESUMED))
    break_off(plans(out / "resumed", RESUMED))
    return [str(error) for error in train_plans(plans(out / "resumed", RESUMED)) if error]


def holds_a_part_of_the_latents(out: Path) -> object:
    config = dataclasses.replace(SHORT, shard=True).resolve(D)
    training = TrainState(config, DataScaling.of(sparse_data(500), "mean"), group=parallel.group(shard=True))
    return {name: list(tensor.shape) for name, tensor in training._tensors().items() if tensor.ndim}


def sums_rows(out: Path) -> object:
    """Compare reduced gradients of few latents, which differ by process, with the full sum, and count the numbers sent."""
    rank, group, sent = dist.get_rank(), Rows(), []
    group.begin(100)
    all_reduce = dist.all_reduce
    found = {}
    for few in (5, F):
        generator = torch.Generator().manual_seed(rank)
        rows = torch.randperm(F, generator=generator)[:few]
        gradient = Parameters(
            W_enc_FD=torch.zeros(F, D), b_dec_E=torch.zeros(D), W_dec_FE=torch.zeros(F, D), b_enc_F=torch.zeros(F)
        )
        for tensor in gradient.values():
            where = rows if len(tensor) == F else slice(None)
            tensor[where] = torch.randn(tensor[where].shape, generator=generator)
        whole = {name: tensor / 2 for name, tensor in gradient.items()}
        for tensor in whole.values():
            all_reduce(tensor)
        sent.clear()
        dist.all_reduce = lambda tensor, how: (sent.append(tensor.numel()), all_reduce(tensor, how))[1]
        reduced = group.reduce(gradient)
        dist.all_reduce = all_reduce
        found[few] = [all(torch.equal(reduced[name], whole[name]) for name in whole), list(reduced) == list(whole), sum(sent)]
    return found


def gathers(out: Path) -> object:
    rank = dist.get_rank()
    tensors = torch.arange(3 * rank), torch.full((2 - rank, 3), 0.5 + rank), torch.zeros(0, 4, dtype=torch.float64)
    return [[part.tolist() for part in parts] for parts in Rows().gather(*tensors)]


def refuses(out: Path) -> object:
    cases: list[dict[str, Any]] = [{"arch": "matryoshka", "shard": True}, {"n_latents": 97, "shard": True}, {"device": "cuda:1"}]
    return [told(lambda case=case: train_plans(plans(out, {"refused": case}))) for case in cases]


def fails_in_one(out: Path) -> object:
    def work() -> None:
        raise ConfigError("It is impossible.", "Leave it." if dist.get_rank() == 0 else None)

    return told(lambda: parallel.group().first(work))


def meets_nan(out: Path) -> object:
    source = Memory(data(), 256)
    source.acts[SITE][3_000] = torch.nan  # in the part of a batch of one process
    (error,) = train_plans(plans(out, {"nan": {"sample_tokens": 256}}), source)
    return str(error)


class Dies(Memory):
    """A source that kills the second process."""

    def __iter__(self) -> Iterator[dict[Site, Tensor]]:
        for n, batch in enumerate(super().__iter__()):
            if n == 10 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def is_left_alone(out: Path) -> object:
    return told(lambda: train_plans(plans(out, {"killed": {}}), Dies(data(), 256)))


ACTS = [trains, resumes, holds_a_part_of_the_latents, sums_rows, gathers, refuses, fails_in_one, meets_nan, is_left_alone]


def main(out: Path) -> None:
    report = {}
    with parallel.joined():
        rank = dist.get_rank()
        for act in ACTS:
            report[act.__name__] = act(out)
            (out / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
