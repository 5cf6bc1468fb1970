"""The state of the training of one dictionary, and one training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import Diverged, NonFiniteActivations
from saekit.sae import SAE
from saekit.sae.whitening import Whitening
from trainers.loop.data_scaling import DataScaling
from trainers.loop.dead import DeadCounter
from trainers.objectives.base import Now, Outcome, objective
from trainers.settings import finetune
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import learning_rate
from trainers.step.adam import Adam
from trainers.step.distributed import ALONE, Group
from trainers.step.optimizer import Optimizer
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient

if TYPE_CHECKING:
    from trainers.objectives.end_to_end import EndToEnd

_FREQUENCY_SHARE = 0.2  # last part of the run, in which firings are counted for the SAE's sparsity file


@dataclass
class MetricWindow:
    """Sums since the last row of metrics. On a GPU they are tensors, because reading a number would wait for the device."""

    squares: Tensor | float = 0.0
    firings: Tensor | float = 0.0
    tokens: int = 0
    losses: Tensor | float = 0.0
    lost: float = 0.0
    """Of end-to-end losses."""


class TrainState:
    """The state of a run: parameters, optimiser, counters. Activations are scaled so that E||x|| = sqrt(D).

    Args:
        config: resolved settings.
        reads: scaling of the activations that are read.
        writes: scaling of the activations that are predicted; None for an SAE, which predicts what it reads.
        start: an SAE to start from instead of random weights.
        group: the processes that train together. Each has the whole state, or its part of the latents.

    Raises:
        ConfigError: the requested backend cannot run here, or the architecture cannot start from `start`.
    """

    def __init__(
        self,
        config: TrainConfig,
        reads: DataScaling,
        writes: DataScaling | None = None,
        start: SAE | None = None,
        group: Group = ALONE,
    ) -> None:
        assert config.device is not None and config.dead_tokens is not None
        self.device, self.dtype = device, dtype = torch.device(config.device), getattr(torch, config.dtype)
        self.config, self.reads, self.writes, self.group = config, reads, writes or reads, group
        self.on_cpu = device.type == "cpu"
        # The Triton kernels know one site: several take the torch step on a GPU.
        self.objective = objective(config, self.reads, self.writes, group)
        self.sparse = config.sparse_step and self.objective.by_hand and not (reads.parts and config.kernels == "triton")
        self.sparse &= config.end_to_end == "no"  # the gradient comes out of the model
        p = self.objective.start() if start is None else finetune.parameters(start, self.objective)
        self.p = p.map(lambda tensor: tensor.to(device, dtype))
        self.adam = Adam.start(self.p, config)
        self.optimizer = Optimizer(self.p, self.adam, self.objective.unit_rows, group)
        self.dead = DeadCounter.start(len(self.p.b_enc_F), config.dead_tokens, device)
        self.fired_F = torch.zeros_like(self.dead.since_F)
        self.fired_tokens = 0
        self.steps = self.tokens = 0
        self.window = MetricWindow()

    # One step

    def step(self, x_BD: Tensor, y_BE: Tensor | None = None) -> Outcome:
        """Scale activations and call :meth:`update`: those that are read and, unless this is an SAE, those that are predicted."""
        x_BD = self.reads.scaled(x_BD, self.device, self.dtype)
        return self.update(x_BD, x_BD if y_BE is None else self.writes.scaled(y_BE, self.device, self.dtype))

    def update(self, x_BD: Tensor, y_BE: Tensor, behind: EndToEnd | None = None) -> Outcome:
        """Train on one batch of scaled activations. For an SAE, `y_BE` is `x_BD`.

        Args:
            behind: in end-to-end fine-tuning, the loss of the rest of the model on the reconstruction of the batch.

        Raises:
            NonFiniteActivations: the loss is not finite because activations are not. Nothing was updated. Only on a CPU.
            Diverged: the loss is not finite although the activations are. Only on a CPU; on a GPU :meth:`check` finds it.
        """
        assert self.config.tokens is not None
        now = self._now
        lr = learning_rate(self.config, min(self.config.tokens, self.tokens + len(x_BD)))  # whole contexts may go beyond
        self.objective.behind = behind
        own = self.group.begin(len(x_BD))
        part, gradient = self._gradient(x_BD[own], y_BE[own], now)
        outcome, firings_F, firings = self._whole(part)
        if self.on_cpu:
            self._check(outcome.loss, x_BD, y_BE)
        self.optimizer.step(gradient, lr)
        self.objective.observe(outcome, now)
        self._count(outcome, firings_F, firings, len(x_BD))
        if behind is not None:
            self.window.lost += len(x_BD) * behind.value
        return outcome

    def _gradient(self, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, Parameters | SparseGradient]:
        """The outcome and the gradient of the rows that this process has."""
        if self.sparse:
            return self.objective.gradient(self.p, x_BD, y_BE, now)
        leaves = self.p.map(lambda tensor: tensor.detach().requires_grad_())
        part = self.objective.loss(self.objective.written(leaves), x_BD, y_BE, now)
        assert isinstance(part.loss, Tensor)
        # Parameters that do not act through the code (b_dec, W_skip) may occur only in the first process's part of the loss.
        gradients = torch.autograd.grad(part.loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return part._replace(loss=part.loss.detach()), Parameters(zip(leaves, gradients))

    def _whole(self, part: Outcome) -> tuple[Outcome, Tensor, Tensor | float]:
        """The outcome for the whole batch, (F,) firings of the latents of this process, and the total firings of all latents."""
        firings_F = part.code.firings(len(self.fired_F))
        loss, squares, firings_F, firings = self.group.sums(part.loss, part.squares, firings_F)
        return part._replace(loss=loss, squares=squares), firings_F, firings

    def _check(self, loss: Tensor | float, x_BD: Tensor, y_BE: Tensor) -> None:
        if math.isfinite(loss.item() if isinstance(loss, Tensor) else loss):
            return
        where = f"batch {self.steps} (tokens {self.tokens} to {self.tokens + len(x_BD)})"
        bad = (~(x_BD.isfinite().flatten(1).all(1) & y_BE.isfinite().flatten(1).all(1))).nonzero()
        if len(bad):
            raise NonFiniteActivations(
                f"{len(bad)} activation vectors of {where} hold NaN or infinity, the first at row {int(bad[0])}."
            )
        raise Diverged(f"The loss of {where} is not finite: the run diverged.")

    def _count(self, outcome: Outcome, firings_F: Tensor, firings: Tensor | float, n_tokens: int) -> None:
        self.steps += 1
        self.tokens += n_tokens
        self.dead.count(firings_F, n_tokens, self.steps)
        self.window.squares += outcome.squares
        self.window.firings += float(firings) if self.on_cpu else firings
        self.window.tokens += n_tokens
        self.window.losses += n_tokens * (outcome.loss.detach() if isinstance(outcome.loss, Tensor) else outcome.loss)
        assert self.config.tokens is not None
        if self.tokens > (1 - _FREQUENCY_SHARE) * self.config.tokens:
            self.fired_F += firings_F
            self.fired_tokens += n_tokens

    @property
    def _now(self) -> Now:
        assert self.config.tokens is not None
        return Now(min(1.0, self.tokens / self.config.tokens), self.dead.dead)

    # What it says of itself

    def check(self) -> None:
        """Raise Diverged if a weight, or a loss since the last row of metrics, is not finite. Steps on a GPU do not check."""
        sound = all(bool(tensor.isfinite().all()) for tensor in self.p.values())
        if self.group.count(int(not sound)) or not math.isfinite(float(self.window.squares)):
            raise Diverged(
                f"A weight or the loss is not finite in the {self.window.tokens} tokens before token {self.tokens}: "
                "the activations hold NaN or the run diverged."
            )

    def row(self) -> dict[str, float]:
        """Metrics of the training data since the last call, each measured before the update of its step.

        Raises:
            Diverged: see :meth:`check`.
        """
        self.check()
        window, self.window = self.window, MetricWindow()
        squares = float(window.squares)
        return {
            "step": self.steps,
            "tokens": self.tokens,
            "loss": float(window.losses) / window.tokens,
            "fvu": squares / (window.tokens * self.writes.variance),
            "l0": float(window.firings) / window.tokens,
            "dead_fraction": self.group.n_latents(len(self.dead.dead)) / self.config.n_latents,
            "lr": learning_rate(self.config, min(self.tokens, self.config.tokens or 0)),
            **({} if self.config.end_to_end == "no" else {self.config.end_to_end: window.lost / window.tokens}),
            **self.objective.metrics(self._now),
        }

    def sae(self, **facts: Any) -> SAE:
        """The current dictionary in the units of the data; `facts` as in :meth:`trainers.objectives.base.Objective.sae`.

        The first process of a group has all of it; others may have that of their own latents.
        """
        p = Parameters({name: self.group.collect(name, tensor) for name, tensor in self.p.items()})
        return self.objective.sae(p, **facts)

    def frequency(self) -> Tensor | None:
        """(F,) fraction of the last tokens on which each latent fired; None if the data ended before the count began."""
        fired_F = self.group.collect("fired_F", self.fired_F).cpu()
        return fired_F.float() / self.fired_tokens if self.fired_tokens else None

    # Checkpoints. There is no random state: chance decides only the initial weights and, in the source, the order of the data.

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name. On the first process they are complete."""
        return {name: self.group.collect(name, tensor) for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        groups = {"p": self.p, "mean": self.adam.mean, "square": self.adam.square, "objective": self.objective.state}
        named = {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
        for side, data in (("reads", self.reads), ("writes", self.writes)):
            if data.whitening is not None and (side == "reads" or data is not self.reads):
                own = vars(data.whitening)
                named |= {f"{side}.{name}": own[name] for name in ("mean_D", "matrix_DD", "inverse_DD")}
        return named | {"since_F": self.dead.since_F, "dead_F": self.dead.dead_F, "fired_F": self.fired_F}

    def facts(self) -> dict[str, Any]:
        """The state without its tensors, as plain data for JSON."""
        window = self.window
        sums = (float(window.squares), float(window.firings), window.tokens, float(window.losses), window.lost)
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "adam_steps": self.adam.step,
            "fired_tokens": self.fired_tokens,
            "window": sums[: 4 if self.config.end_to_end == "no" else 5],
            "reads": self.reads.to_dict(),
            "writes": None if self.writes is self.reads else self.writes.to_dict(),
        }

    @classmethod
    def restore(
        cls, config: TrainConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], group: Group = ALONE
    ) -> TrainState:
        """The state with these :meth:`tensors` and :meth:`facts`. The number of processes may have changed."""
        reads, writes = (facts[side] and DataScaling.from_dict(facts[side]) for side in ("reads", "writes"))
        if config.scaling == "whitening":
            for data in filter(None, (reads, writes)):
                data.whitening = Whitening.empty(len(data.centre_D))
        training = cls(config, reads, writes, group=group)
        for name, tensor in training._tensors().items():
            tensor.copy_(group.part(name, tensors[name]))
        training.dead.dead_F = group.part("dead_F", tensors["dead_F"]).to(training.device)
        training.steps, training.tokens, training.adam.step = facts["steps"], facts["tokens"], facts["adam_steps"]
        training.fired_tokens, training.window = facts["fired_tokens"], MetricWindow(*facts["window"])
        return training
