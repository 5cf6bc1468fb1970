"""Metrics: numbers from logits, higher where the model shows more of a behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError
from saekit.plugins import Registry
from saekit.tasks import values

if TYPE_CHECKING:
    from torch import Tensor

    from saekit.tasks.task import Task


@dataclass(frozen=True)
class Metric:
    """A number for each prompt, from the logits of a run. Call it for the mean over the prompts. B prompts.

    Any callable that takes logits (B, T, V) and returns a number, or a tensor (B,), can stand in place of a metric.

    Attributes:
        kind: one of :data:`METRICS`.
        positions: (B,) the position of each row whose prediction counts; empty for the last position of all rows.
        answers: (B,) the token that shows the behaviour.
        foils: (B,) the token that shows its absence.
        rows: token ids of the B texts whose tokens are predicted.
        reference: logits (B, T, V) of the run to compare with. Not part of the saved form.

    Raises:
        ConfigError: there is no such metric, or its tokens do not fit together.
    """

    kind: str
    positions: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()
    foils: tuple[int, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    reference: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        METRICS.find(self.kind)
        for name in ("positions", "answers", "foils"):
            object.__setattr__(self, name, values.integers(getattr(self, name), name))
        object.__setattr__(self, "rows", values.rows(self.rows, "rows"))
        sizes = {len(each) for each in (self.positions, self.answers, self.foils, self.rows) if each}
        if len(sizes) > 1:
            raise ConfigError(f"The metric {self.kind} is given tokens of {sorted(sizes)} prompts.", "Give one for each prompt.")

    @classmethod
    def of(cls, kind: str, task: Task) -> Metric:
        """A metric of the predictions after the prompts of a task.

        Raises:
            ConfigError: there is no such metric, or the task is open-ended.
        """
        if not all(task.answers):
            raise ConfigError(f"Task {task.name!r} is open-ended: no token is its answer.", "Give tasks with answers.")
        return cls(
            kind,
            tuple(len(row) - 1 for row in task.clean),
            tuple(row[0] for row in task.answers),
            tuple(row[0] for row in task.foils),
        )

    def __call__(self, logits_BTV: Tensor) -> Tensor:
        """The mean over the prompts, a scalar."""
        return self.per_prompt(logits_BTV).mean()

    def per_prompt(self, logits_BTV: Tensor) -> Tensor:
        """(B,) the number of each prompt, float32 or better.

        Raises:
            ConfigError: the logits are of another number of prompts, or shorter than the positions.
        """
        if logits_BTV.ndim != 3:
            raise ConfigError(f"Logits of shape {tuple(logits_BTV.shape)} are not (prompts, positions, vocabulary).")
        wide = logits_BTV if logits_BTV.element_size() > 4 else logits_BTV.float()
        B, T, _ = wide.shape
        sizes = {len(each) for each in (self.positions, self.answers, self.foils, self.rows) if each}
        if sizes - {B} or max(self.positions, default=0) >= T or max(map(len, self.rows), default=0) > T:
            raise ConfigError(
                f"The metric {self.kind} is of {max(sizes)} prompts and positions up to {max(self.positions, default=T - 1)}; "
                f"the logits are of {B} prompts of {T} positions.",
                "Run the prompts that the metric was made for.",
            )
        return METRICS[self.kind](self, wide)

    def at_positions(self, logits_BTV: Tensor) -> Tensor:
        """(B, V) the logits at the positions that count."""
        import torch

        if not self.positions:
            return logits_BTV[:, -1]
        position_B = torch.tensor(self.positions, device=logits_BTV.device)
        return logits_BTV[torch.arange(len(position_B), device=logits_BTV.device), position_B]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the reference."""
        return {
            "kind": self.kind,
            "positions": list(self.positions),
            "answers": list(self.answers),
            "foils": list(self.foils),
            "rows": [list(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metric:
        """The metric that :meth:`to_dict` was called on.

        Raises:
            ConfigError: the values are not those of a metric.
        """
        known = {"kind", "positions", "answers", "foils", "rows"}
        if not isinstance(data, Mapping) or data.keys() != known or not isinstance(data["kind"], str):
            raise ConfigError(f"{data!r:.80} is not a metric.", f"A metric has {', '.join(sorted(known))}.")
        return cls(**data)


def _pick(metric: Metric, logits_BV: Tensor, tokens: tuple[int, ...], what: str) -> Tensor:
    import torch

    if not tokens:
        raise ConfigError(f"The metric {metric.kind} needs {what}.")
    if max(tokens) >= logits_BV.shape[1]:
        raise ConfigError(f"The metric {metric.kind} has token {max(tokens)} of a vocabulary of {logits_BV.shape[1]}.")
    return logits_BV.gather(1, torch.tensor(tokens, device=logits_BV.device)[:, None])[:, 0]


def _logit_difference(metric: Metric, logits_BTV: Tensor) -> Tensor:
    logits_BV = metric.at_positions(logits_BTV)
    return _pick(metric, logits_BV, metric.answers, "answers") - _pick(metric, logits_BV, metric.foils, "foils")


def _log_probability(metric: Metric, logits_BTV: Tensor) -> Tensor:
    return _pick(metric, metric.at_positions(logits_BTV).log_softmax(-1), metric.answers, "answers")


def _kl(metric: Metric, logits_BTV: Tensor) -> Tensor:
    """KL(reference || run) at the positions that count, in nats: how far the run is from the reference."""
    import torch

    if metric.reference is None or metric.reference.shape[::2] != logits_BTV.shape[::2]:
        raise ConfigError(
            "The metric kl needs reference logits of the same prompts and vocabulary.",
            "Make it with dataclasses.replace(metric, reference=logits).",
        )
    log_p = metric.at_positions(metric.reference.to(logits_BTV)).log_softmax(-1)
    log_q = metric.at_positions(logits_BTV).log_softmax(-1)
    # A token that the reference rules out adds nothing, also where the run rules it out.
    return torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def _cross_entropy(metric: Metric, logits_BTV: Tensor) -> Tensor:
    """Minus the mean cross-entropy of the tokens of each row but the first, in nats: higher where the text is likelier."""
    import torch

    if not metric.rows or min(map(len, metric.rows)) < 2:
        raise ConfigError("The metric cross_entropy needs rows of at least two tokens.")
    means = []
    for row, logits_TV in zip(metric.rows, logits_BTV):
        target_T = torch.tensor(row[1:], device=logits_TV.device)
        means.append(-torch.nn.functional.cross_entropy(logits_TV[: len(row) - 1], target_T))
    return torch.stack(means)


METRICS: Registry[Callable[[Metric, Any], Any]] = Registry(
    "metric",
    {"logit_difference": _logit_difference, "log_probability": _log_probability, "kl": _kl, "cross_entropy": _cross_entropy},
)
"""Kinds of metrics: a function of the metric and logits (B, T, V) that returns (B,)."""
