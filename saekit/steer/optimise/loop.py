"""The training loop that every kind of tuning shares: a target loss, and KL to the unedited model on neutral text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from saekit.errors import ConfigError, NonFiniteActivations
from saekit.progress import track
from saekit.steer.optimise.objectives import Loss, Rows, kl_to, rows_of_texts

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@dataclass(frozen=True)
class TuneSettings:
    """How tuning runs.

    Attributes:
        steps: optimiser steps.
        batch: examples in a step, and neutral texts in a step.
        lr: peak learning rate of AdamW; it rises over the first tenth of the steps and falls linearly to 0.
        weight_decay: of AdamW, on the tuned numbers alone.
        preserve: weight of the KL divergence to the unedited model on neutral text, in units of the target loss.
        clip: largest length of the gradient; longer ones are scaled.
        seed: of the order of examples and of new parameters.

    Raises:
        ConfigError: a number is out of range.
    """

    steps: int = 200
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0
    preserve: float = 1.0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "lr": 0, "weight_decay": 0, "preserve": 0, "clip": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise ConfigError(f"{name} is {value}.", f"Give a finite number from {low}.")


class Adjustment(Protocol):
    """What is trained: numbers, and how the model uses them."""

    def leaves(self, group: str | None = None) -> list[Tensor]:
        """The trained numbers; those that examples of a group train, or all for None."""
        ...

    def edits(self) -> Sequence[Any]:
        """Edits of activations with the trained numbers, for `lm.run`."""
        ...

    def training(self) -> AbstractContextManager[None]:
        """Within the block the model uses the trained numbers; after it, the model is as before, bit for bit."""
        ...

    def off(self) -> AbstractContextManager[Sequence[Any]]:
        """Within the block the model is as before the training; gives the edits to run with."""
        ...

    def stepped(self) -> None:
        """Called after each step of the optimiser."""
        ...

    def penalty(self) -> Tensor | None:
        """A further term of the loss."""
        ...


@dataclass(frozen=True)
class History:
    """Losses of a training.

    Attributes:
        target: target loss of each step's batch, in nats, before the step.
        kl: KL divergence of each step's neutral texts, in nats a token; empty without neutral texts.
    """

    target: tuple[float, ...]
    kl: tuple[float, ...]


def train(
    lm: LanguageModel,
    adjustment: Adjustment,
    loss: Loss,
    neutral: Sequence[str] | Sequence[Sequence[int]] | None = None,
    settings: TuneSettings | None = None,
    *,
    watch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> History:
    """Minimise loss + preserve * KL(unedited || edited), the KL per token of neutral texts.

    The unedited predictions are computed anew for each batch of neutral texts, so that memory does not grow with their number.
    It grows with the tokens of a batch (activations, and two rows of the vocabulary for each token) and with the trained numbers
    (each with two moments in float32).

    Args:
        lm: the model; other threads wait until the training has ended.
        adjustment: what is trained. The caller takes the result from it inside `adjustment.training()`, or afterwards.
        loss: the target.
        neutral: texts on which predictions are to stay; None: no preservation loss.
        settings: steps, batch, rates, seed.
        watch: called with the number of steps done, after each step, while the model is as trained so far.
        progress: show a progress bar.

    Raises:
        NonFiniteActivations: a loss is not finite.
        CorpusError: a neutral text has fewer than two tokens.
    """
    settings = settings or TuneSettings()
    kept = None if neutral is None or not settings.preserve else rows_of_texts(lm, neutral)
    optimiser = torch.optim.AdamW(adjustment.leaves(), lr=settings.lr, weight_decay=settings.weight_decay)
    warm, total = max(1, settings.steps // 10), settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: min((n + 1) / warm, (total - n) / max(total - warm, 1)))
    batches = grouped_batches(loss.groups, settings.batch, settings.seed)
    neutral_batches = grouped_batches(["neutral"] * len(kept.rows), settings.batch, settings.seed + 1) if kept else None
    targets: list[float] = []
    kls: list[float] = []
    # The caller may be in torch.no_grad or torch.inference_mode.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        track("tuning", settings.steps, unit="steps", enabled=progress) as bar,
    ):
        for step in range(settings.steps):
            group, index = next(batches)
            optimiser.zero_grad(set_to_none=True)
            targets.append(_backward(loss(index, adjustment.edits()), step))
            if kept is not None and neutral_batches is not None:
                kl = _kl(adjustment, kept, next(neutral_batches)[1])
                kls.append(_backward(kl, step, settings.preserve))
            if (more := adjustment.penalty()) is not None:
                _backward(more, step)
            active = adjustment.leaves(group)
            for leaf in adjustment.leaves():
                if not any(leaf is each for each in active):
                    leaf.grad = None  # the optimiser then leaves it and its moments alone
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(active, settings.clip)
            optimiser.step()
            adjustment.stepped()
            schedule.step()
            if watch is not None:
                watch(step + 1)
            bar.update(step + 1, f"loss {targets[-1]:.3f}" + (f", KL {kls[-1]:.4f}" if kls else ""))
    return History(tuple(targets), tuple(kls))


def grouped_batches(groups: Sequence[str], size: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Batches of examples of one group, without an end: (group, indices). Each example comes once in a round."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(groups))
    while True:
        batches: list[tuple[str, list[int]]] = []
        for name in names:
            own = torch.tensor([n for n, group in enumerate(groups) if group == name])
            order = own[torch.randperm(len(own), generator=generator)].tolist()
            batches += [(name, order[start : start + size]) for start in range(0, len(order), size)]
        for n in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[n]


def _kl(adjustment: Adjustment, rows: Rows, index: Sequence[int]) -> Tensor:
    with adjustment.off() as edits:
        before_NV = rows.predictions(index, edits, grad=False)[0]
    return kl_to(before_NV, rows.predictions(index, adjustment.edits())[0])


def _backward(loss: Tensor, step: int, weight: float = 1.0) -> float:
    """Add the gradient of a loss, and return the loss."""
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise NonFiniteActivations(f"The loss is {value} at step {step}.", "Lower the learning rate, or run in float32.")
    (loss * weight).backward()
    return value
