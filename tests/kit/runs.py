"""Small whole runs on synthetic data, and readers of their files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.sae import ARCHITECTURES, SAE
from tests.kit.memory import SITE, Memory
from trainers import OBJECTIVES, TrainConfig, train
from trainers.loop.log import TIMING

D, F = 24, 96
ROWS = [arch for arch in OBJECTIVES if not ARCHITECTURES[arch].pairs]
"""Architectures that are trained on single rows."""
CONFIG = TrainConfig(n_latents=F, l0=4, tokens=40_000, batch_size=256, lr=0.015, aux_k=8, dead_tokens=4_000, sample_tokens=1_024)
LONGER = dataclasses.replace(CONFIG, tokens=300_000)


def sparse_data(n: int, seed: int = 0) -> Tensor:
    """Sums of four of 60 directions with positive coefficients and a non-zero mean."""
    directions = torch.nn.functional.normalize(torch.randn(60, D, generator=torch.Generator().manual_seed(99)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(n, 60, generator=generator).topk(4, dim=1).indices
    strength = 1 + torch.rand(n, 4, generator=generator)
    return (directions[which] * strength[..., None]).sum(1) + 2 + 0.02 * torch.randn(n, D, generator=generator)


def train_run(out: Path, config: TrainConfig = CONFIG, x: Tensor | None = None, **more: Any) -> SAE:
    x = sparse_data(20_000) if x is None else x
    heldout = Memory(sparse_data(3_000, seed=1), 500, epochs=1)
    return train(Memory(x, config.batch_size or 256), config, out, site=SITE, heldout=heldout, progress=False, **more)


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files except those with times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != TIMING]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Breaks(Memory):
    """A source that raises KeyboardInterrupt after `after` batches."""

    def __init__(self, x: Tensor, batch_size: int, after: int) -> None:
        super().__init__(x, batch_size)
        self.after = after

    def __iter__(self) -> Any:
        self.given = 0  # batches of the first sample count too, since they are trained on afterwards
        for batch in super().__iter__():
            if self.given == self.after:
                raise KeyboardInterrupt
            self.given += 1
            yield batch
