"""The local learning coefficient through grokking (Lau et al. 2023; Hoogland et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saekit.evaluate.dynamics.learning_coefficient import Sampler, learning_coefficient
from saekit.improve.report import Report
from saekit.improve.target import LOWER
from saekit.improve.training.grokking import Adder, Progress, Sums, train
from saekit.improve.trial import Trial


def local_learning(trial: Trial) -> Report:
    """The learning coefficient of a network for modular addition: how many effective parameters does its solution have?

    A solution that generalises is simpler than one that memorises. The target is the coefficient at the end, one number for each
    chain of SGLD; before: at the first checkpoint that knows the trained sums. The control is trained without weight decay.
    """
    steps, every = (60, 30) if trial.quick else (1500, 150)
    found, chains = _coefficients(trial, steps, every, decay=1.0)
    plain, other = _coefficients(trial, steps, steps, decay=0.0)
    rows = [_row(each, own) for each, own in zip(found, chains)]
    rows.append({"weight decay": 0} | _row(plain[-1], other[-1]))
    learned = next((n for n, each in enumerate(found) if each.train_loss < 0.1), 0)
    what = f"SGLD around checkpoints of {steps} steps; before: at step {found[learned].step}, where the trained sums are known"
    return trial.readout(
        "local learning coefficient after grokking",
        chains[learned],
        chains[-1],
        {"without weight decay": other[-1]},
        what=what,
        figures=rows,
        wanted=LOWER,
        unit="effective parameters",
    )


def _row(progress: Progress, chains: Tensor) -> dict[str, float]:
    return {
        "step": progress.step,
        "train loss": progress.train_loss,
        "accuracy on unseen sums": progress.test_accuracy,
        "learning coefficient": float(chains.mean()),
    }


def _coefficients(trial: Trial, steps: int, every: int, decay: float) -> tuple[list[Progress], list[Tensor]]:
    """The measures of checkpoints, and (chains,) coefficients of each."""
    found: list[Tensor] = []
    size = {"steps": 5, "burn_in": 5} if trial.quick else {"steps": 100, "burn_in": 100}
    sampler = Sampler(chains=4, rate=1e-3, pull=300.0, seed=trial.seed, **size)

    def watch(model: Adder, data: Sums) -> None:
        pairs, sums = data.pairs[data.trained], data.sums[data.trained]

        def loss(step: int = 0) -> Tensor:
            return cross_entropy(model(pairs), sums)

        weights = list(model.parameters())
        found.append(torch.tensor(learning_coefficient(weights, loss, loss, len(pairs), sampler), dtype=torch.float64))

    progress, _ = train(trial.seed, steps, every, decay, watch)
    return progress, found
