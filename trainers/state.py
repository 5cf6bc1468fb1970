"""Everything that changes while a dictionary is trained, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.errors import NonFiniteActivations
from trainers.adam import Adam
from trainers.config import DTYPES, TrainConfig
from trainers.dead import DeadCounter
from trainers.objectives import Outcome, objective
from trainers.parameters import Parameters
from trainers.schedule import learning_rate
from trainers.statistics import Statistics

_FREQUENCY_SHARE = 0.2  # of the run, at its end, in which firings are counted for the SAE's sparsity file


@dataclass
class Window:
    """Sums since the last row of metrics. Tensors where the computation is on a GPU: reading them would wait for it."""

    squares: Tensor | float = 0.0
    firings: Tensor | float = 0.0
    tokens: int = 0


class Training:
    """The state of a run. Activations come in as they are; inside, they are scaled so that E||x|| = sqrt(D).

    Args:
        config: resolved settings.
        data: facts about the data, in scaled units.

    Raises:
        ConfigError: the numba step was asked for where it cannot run.
    """

    def __init__(self, config: TrainConfig, data: Statistics) -> None:
        assert config.device is not None and config.dead_tokens is not None
        device, dtype = config.device, DTYPES[config.dtype]
        self.config, self.data = config, data
        self.on_cpu = torch.device(device).type == "cpu"
        self.sparse = config.sparse_step
        self.objective = objective(config, data.variance)
        self.p = Parameters.start(config.n_latents, data, config.seed, dtype, device)
        self.adam = Adam.start(self.p, config)
        self.dead = DeadCounter.start(config.n_latents, config.dead_tokens, device)
        self.fired_F = torch.zeros(config.n_latents, dtype=torch.int64, device=device)
        self.fired_tokens = 0
        self.steps = self.tokens = 0
        self.window = Window()

    # One step

    def step(self, x_BD: Tensor) -> None:
        """Train on one batch of activations (B, D).

        Raises:
            NonFiniteActivations: the loss is NaN or infinite and nothing was updated; on a GPU :meth:`check` finds it.
        """
        x_BD = x_BD.to(self.p.W_enc_FD.device, self.p.W_enc_FD.dtype, non_blocking=True) * self.data.scale
        lr = learning_rate(self.config, self.tokens + len(x_BD))
        unit_rows = self.objective.unit_rows
        if self.sparse:
            outcome, sparse_gradient = self.objective.gradient(self.p, x_BD, self.dead.dead)
            self._check(outcome.loss, x_BD)
            sparse_gradient.apply(self.p, self.adam, lr, unit_rows=unit_rows)
        else:
            leaves = self.p.map(lambda tensor: tensor.detach().requires_grad_())
            outcome = self.objective.loss(leaves, x_BD, self.dead.dead)
            if self.on_cpu:
                self._check(outcome.loss, x_BD)
            assert isinstance(outcome.loss, Tensor)
            names = leaves.named()
            gradients = torch.autograd.grad(outcome.loss, list(names.values()))
            self.adam.apply(self.p, Parameters(**dict(zip(names, gradients))), lr, unit_rows=unit_rows)
        self._count(outcome, len(x_BD))

    def _check(self, loss: Tensor | float, x_BD: Tensor) -> None:
        if math.isfinite(loss.item() if isinstance(loss, Tensor) else loss):
            return
        where = f"batch {self.steps} (tokens {self.tokens} to {self.tokens + len(x_BD)})"
        bad = (~x_BD.isfinite()).any(1).nonzero()
        if len(bad):
            raise NonFiniteActivations(
                f"{len(bad)} activation vectors of {where} hold NaN or infinity, the first at row {int(bad[0])}.",
                "Training stopped before using them; its last checkpoint is kept.",
            )
        raise NonFiniteActivations(
            f"The loss of {where} is not finite: the run diverged.",
            f"Its last checkpoint is kept; lower the learning rate (now {self.config.lr:g}).",
        )

    def _count(self, outcome: Outcome, n_tokens: int) -> None:
        values_BK, indices_BK = outcome.values_BK, outcome.indices_BK
        self.steps += 1
        self.tokens += n_tokens
        self.dead.count(values_BK, indices_BK, self.steps)
        fires_BK = values_BK > 0
        firings = fires_BK.sum()
        self.window.squares += outcome.squares
        self.window.firings += float(firings) if self.on_cpu else firings
        self.window.tokens += n_tokens
        assert self.config.tokens is not None
        if self.tokens > (1 - _FREQUENCY_SHARE) * self.config.tokens:
            self.fired_F.scatter_add_(0, indices_BK.flatten(), fires_BK.flatten().long())
            self.fired_tokens += n_tokens

    # What it says of itself

    def check(self) -> None:
        """Raise NonFiniteActivations if a weight or a loss since the last metrics is not finite: no step on a GPU looks."""
        sound = all(bool(tensor.isfinite().all()) for tensor in self.p.named().values())
        if not (sound and math.isfinite(float(self.window.squares))):
            raise NonFiniteActivations(
                f"A weight or the loss is not finite in the {self.window.tokens} tokens before token {self.tokens}: "
                "the activations hold NaN or the run diverged.",
                "Its last checkpoint is kept.",
            )

    def row(self) -> dict[str, float]:
        """Metrics since the last call: of the training data, before each step's update.

        Raises:
            NonFiniteActivations: see :meth:`check`.
        """
        self.check()
        window, self.window = self.window, Window()
        squares = float(window.squares)
        return {
            "step": self.steps,
            "tokens": self.tokens,
            "fvu": squares / (window.tokens * self.data.variance),
            "l0": float(window.firings) / window.tokens,
            "dead_fraction": len(self.dead.dead) / self.config.n_latents,
            "lr": learning_rate(self.config, self.tokens),
        }

    def frequency(self) -> Tensor | None:
        """(F,) fraction of the last tokens on which each latent fired; None where the data ended before they were counted."""
        return self.fired_F.cpu().float() / self.fired_tokens if self.fired_tokens else None

    # Checkpoints. There is no random state: chance decides only the initial weights and, in the source, the order of the data.

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name."""
        groups = {"p": self.p, "mean": self.adam.mean, "square": self.adam.square}
        named = {f"{group}.{name}": tensor for group, p in groups.items() for name, tensor in p.named().items()}
        return named | {
            "dead.since_F": self.dead.since_F,
            "dead.dead": self.dead.dead,
            "fired_F": self.fired_F,
            "data.centre_D": self.data.centre_D,
        }

    def facts(self) -> dict[str, Any]:
        """All else, fit for JSON."""
        window = (float(self.window.squares), float(self.window.firings), self.window.tokens)
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "adam_steps": self.adam.step,
            "fired_tokens": self.fired_tokens,
            "window": window,
            "scale": self.data.scale,
            "variance": self.data.variance,
        }

    @classmethod
    def restore(cls, config: TrainConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Training:
        """The training whose :meth:`tensors` and :meth:`facts` these are."""
        training = cls(config, Statistics(facts["scale"], tensors["data.centre_D"], facts["variance"]))
        for name, tensor in training.tensors().items():
            if name != "dead.dead":
                tensor.copy_(tensors[name])
        training.dead.dead = tensors["dead.dead"].to(training.fired_F.device)
        training.steps, training.tokens, training.adam.step = facts["steps"], facts["tokens"], facts["adam_steps"]
        training.fired_tokens, training.window = facts["fired_tokens"], Window(*facts["window"])
        return training
