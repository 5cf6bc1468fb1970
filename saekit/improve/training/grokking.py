"""Grokking: a small network learns modular addition, and its Fourier spectrum says when (Nanda et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekit.improve.report import Report
from saekit.improve.target import HIGHER
from saekit.improve.trial import Trial

_P = 29
_WIDTH = 96
_SHARE = 0.5
"""Share of all sums that the network is trained on."""
_KEY = 0.05
"""Share of the embedding's spectrum above which a frequency is a key frequency."""


@dataclass(frozen=True)
class Progress:
    """Measures of one checkpoint.

    Attributes:
        step: optimiser steps.
        train_loss, test_loss: cross-entropy in nats on the sums that were and were not trained on.
        test_accuracy: share of the latter that are right.
        restricted_loss: loss on all sums with logits projected on the key frequencies: what the learned circuit alone gives.
        excluded_loss: loss on the trained sums with the key frequencies removed: what memory alone gives.
        density: share of frequencies above half of the largest (Fourier frequency density); low where few frequencies carry all.
    """

    step: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    restricted_loss: float
    excluded_loss: float
    density: float


class Adder(nn.Module):
    """logits (B, p) of a + b mod p: embeddings that are added, one ReLU layer, and an unembedding."""

    def __init__(self, p: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(p, width, generator=generator) * width**-0.5)
        self.hidden = nn.Parameter(torch.randn(width, 4 * width, generator=generator) * width**-0.5)
        self.out = nn.Parameter(torch.randn(4 * width, p, generator=generator) * (4 * width) ** -0.5)

    def forward(self, pairs_B2: Tensor) -> Tensor:
        """(B, p)."""
        return (self.embed[pairs_B2].sum(1) @ self.hidden).relu() @ self.out


def spectrum(values_PX: Tensor) -> Tensor:
    """(p // 2,) share of the squared length at each frequency from 1, summed over columns; the mean is left out."""
    power_FX = torch.fft.rfft(values_PX.double(), dim=0)[1:].abs() ** 2
    power_F = power_FX.sum(1)
    return power_F / power_F.sum()


def project(logits_PPC: Tensor, keys: list[int]) -> Tensor:
    """(p, p, p) logits over (a, b, c): the part that depends on a + b through cos and sin of the key frequencies.

    The mean over all pairs is kept. Each frequency k contributes the projection on cos(2 pi k (a + b) / p) and on sin.
    """
    p = logits_PPC.shape[0]
    total_PP = torch.arange(p)[:, None] + torch.arange(p)[None]
    found = logits_PPC.mean((0, 1), keepdim=True).expand_as(logits_PPC).clone()
    for k in keys:
        angle_PP = 2 * torch.pi * k * total_PP.double() / p
        for wave_PP in (angle_PP.cos(), angle_PP.sin()):
            unit_PP = wave_PP / wave_PP.norm()
            found += unit_PP[..., None] * torch.einsum("abc,ab->c", logits_PPC, unit_PP)
    return found


def key_frequencies(embed_PD: Tensor) -> list[int]:
    """Frequencies with more than 5 % of the spectrum of the embedding, the largest alone where none has."""
    share_F = spectrum(embed_PD)
    chosen = [int(i) + 1 for i in (share_F > _KEY).nonzero().flatten()]
    return chosen or [int(share_F.argmax()) + 1]


def measured(model: Adder, pairs: Tensor, sums: Tensor, trained: Tensor, step: int) -> Progress:
    """The measures of one checkpoint; `pairs` are all (a, b) in order."""
    p = model.embed.shape[0]
    with torch.no_grad():
        logits = model(pairs).double()
        part = project(logits.reshape(p, p, p), key_frequencies(model.embed.detach())).reshape(-1, p)
        loss = nn.functional.cross_entropy
        rest = logits - part + part.mean(0)
        share_F = spectrum(model.embed.detach())
        right = (logits.argmax(1) == sums)[~trained].double()
        return Progress(
            step,
            float(loss(logits[trained], sums[trained])),
            float(loss(logits[~trained], sums[~trained])),
            float(right.mean()),
            float(loss(part, sums)),
            float(loss(rest[trained], sums[trained])),
            float((share_F > share_F.max() / 2).double().mean()),
        )


@dataclass(frozen=True, eq=False)
class Sums:
    """All pairs (a, b) in order as (p * p, 2), their sums modulo p, and which are trained on."""

    pairs: Tensor
    sums: Tensor
    trained: Tensor

    @classmethod
    def draw(cls, p: int, generator: torch.Generator) -> Sums:
        """Choose at random what is trained on."""
        pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
        trained = torch.zeros(len(pairs), dtype=torch.bool)
        trained[torch.randperm(len(pairs), generator=generator)[: int(_SHARE * len(pairs))]] = True
        return cls(pairs, pairs.sum(1) % p, trained)


def train(
    seed: int, steps: int, every: int, decay: float = 1.0, watch: Callable[[Adder, Sums], None] | None = None
) -> tuple[list[Progress], Tensor]:
    """Train an adder with AdamW and strong weight decay; measures at every checkpoint, and which untrained sums are right.

    Args:
        seed: of the weights and of what is trained on.
        steps: of the optimiser.
        every: steps between checkpoints.
        decay: weight decay.
        watch: called with the network at each checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    data = Sums.draw(_P, generator)
    pairs, sums, trained = data.pairs, data.sums, data.trained
    model = Adder(_P, _WIDTH, generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay, betas=(0.9, 0.98))
    found = []
    for step in range(steps + 1):
        if step % every == 0:
            found.append(measured(model, pairs, sums, trained, step))
            if watch is not None:
                watch(model, data)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(pairs[trained]), sums[trained]).backward()
        optimiser.step()
    with torch.no_grad():
        return found, (model(pairs).argmax(1) == sums)[~trained].double()


def grokking(trial: Trial) -> Report:
    """Train through grokking and compare the progress measures with the accuracy on sums that were never seen.

    The target is the accuracy on unseen sums at the end; before: at the checkpoint where the trained sums are first learned.
    """
    steps = 60 if trial.quick else 3000
    found, right = train(trial.seed, steps, 30 if trial.quick else 100)
    learned = next((each for each in found if each.train_loss < 0.1), found[-1])
    rows: list[dict[str, Any]] = [vars(each) | {} for each in found]
    half = next((each.step for each in found if each.restricted_loss < found[0].restricted_loss / 2), None)
    grokked = next((each.step for each in found if each.test_accuracy > 0.9), None)
    rows.append({"restricted loss halved at step": half, "unseen sums right at step": grokked})
    chance = torch.full_like(right, 1 / _P)
    return trial.readout(
        "unseen sums that are right after grokking",
        torch.full_like(right, learned.test_accuracy),
        right,
        {"chance": chance},
        what=f"a network trained for {steps} steps; before: at step {learned.step}, where the trained sums are known",
        figures=rows,
        wanted=HIGHER,
    )
