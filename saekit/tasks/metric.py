"""Metrics: numbers from logits, higher where the model shows more of a behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        rows: token ids of the B texts whose tokens are predicted: whole rows for cross_entropy; for probability and
            log_probability answers of several tokens. `positions` predict the first token of each answer.
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

        Where answers have several tokens, probability and log_probability are those of the whole answer. They need logits of
        `task.forced()`, whose prompts are followed by the answers; :func:`measured` returns both.

        Raises:
            ConfigError: there is no such metric, the task is open-ended, or an answer has several tokens where one is judged.
        """
        METRICS.find(kind)
        positions = tuple(len(row) - 1 for row in task.clean)
        if kind == "cross_entropy":
            return cls(kind, rows=task.clean)
        if kind in ("kl", "negative_kl"):
            return cls(kind, positions)
        if not all(task.answers):
            raise ConfigError(f"Task {task.name!r} is open-ended: no token is its answer.", "Give tasks with answers.")
        if task.longest_answer > 1 and kind in _WHOLE_ANSWERS:
            return cls(kind, positions, rows=task.answers)
        if task.longest_answer > 1:
            number = next(i for i, row in enumerate(task.answers) if len(row) > 1)
            raise ConfigError(
                f"The answer of prompt {number} of task {task.name!r} has {len(task.answers[number])} tokens; "
                f"the metric {kind} judges one.",
                "Use log_probability, which judges whole answers, or task.first_tokens() (on the command line --first-token).",
            )
        return cls(kind, positions, tuple(row[0] for row in task.answers), tuple(row[0] for row in task.foils))

    @property
    def reach(self) -> int | None:
        """How many of the last tokens of each prompt the metric reads; None: all of them, or that is not known."""
        if self.kind not in _AT_THE_END:
            return None
        return max(map(len, self.rows), default=1)

    def of_prompts(self, index: Sequence[int]) -> Metric:
        """The metric of some of the prompts, in the order of `index`; a prompt may occur several times."""
        picked: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in index) for name in _PER_PROMPT if getattr(self, name)
        }
        return replace(self, **picked, reference=None if self.reference is None else self.reference[list(index)])

    def at_the_end(self, k: int = 1) -> Metric:
        """The same metric for logits (B, k, V) of the last `k` tokens of each prompt alone.

        Raises:
            ConfigError: the metric reads more tokens than these.
        """
        if self.reach is None or k < self.reach:
            raise ConfigError(
                f"The metric {self.kind} reads {'all' if self.reach is None else f'the last {self.reach}'} tokens of a prompt.",
                f"It cannot be computed from the logits of the last {k}.",
            )
        if self.rows:
            return replace(self, positions=tuple(k - len(row) for row in self.rows))
        reference = self.reference
        if reference is not None:
            reference = self.at_positions(reference)[:, None].expand(-1, k, -1)
        return replace(self, positions=(), reference=reference)

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
    """Of an answer of several tokens, the sum of the log-probabilities of its tokens, each after those before it."""
    import torch

    if metric.rows:
        if len(metric.positions) != len(metric.rows) or not min(map(len, metric.rows)):
            raise ConfigError(f"The metric {metric.kind} needs a position for each answer, and answers of at least one token.")
        sums = []
        for start, row, logits_TV in zip(metric.positions, metric.rows, logits_BTV):
            if start + len(row) > len(logits_TV) or max(row) >= logits_TV.shape[1]:
                raise ConfigError(
                    f"The logits {tuple(logits_TV.shape)} of a prompt do not cover the answer of {len(row)} tokens from {start}.",
                    "Run the prompts of task.forced().",
                )
            target_T = torch.tensor(row, device=logits_TV.device)
            sums.append(-torch.nn.functional.cross_entropy(logits_TV[start : start + len(row)], target_T, reduction="sum"))
        return torch.stack(sums)
    return _pick(metric, metric.at_positions(logits_BTV).log_softmax(-1), metric.answers, "answers")


def _probability(metric: Metric, logits_BTV: Tensor) -> Tensor:
    return _log_probability(metric, logits_BTV).exp()


def _negative_kl(metric: Metric, logits_BTV: Tensor) -> Tensor:
    """Minus KL(reference || run): higher where the run is closer to the reference."""
    return -_kl(metric, logits_BTV)


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
    {
        "logit_difference": _logit_difference,
        "probability": _probability,
        "log_probability": _log_probability,
        "kl": _kl,
        "negative_kl": _negative_kl,
        "cross_entropy": _cross_entropy,
    },
)
"""Kinds of metrics: a function of the metric and logits (B, T, V) that returns (B,)."""
_WHOLE_ANSWERS = ("probability", "log_probability")
_AT_THE_END = ("logit_difference", "probability", "log_probability", "kl", "negative_kl")
_PER_PROMPT = ("positions", "answers", "foils", "rows")


def measured(task: Task, metric: Metric | Callable[[Any], Any] | str | None = None) -> tuple[Task, Metric | Callable[[Any], Any]]:
    """The prompts to run and the metric to compute from their logits.

    Args:
        task: the task.
        metric: a metric or a callable, which are returned unchanged; the name of a kind; or None for the logit difference. The
            name "kl" gives negative_kl, because metrics that rank objects are higher where there is more of the behaviour.

    Returns:
        The task, or `task.forced()` where the metric judges answers of several tokens; and the metric. The metrics of KL have no
        reference yet.

    Raises:
        ConfigError: as :meth:`Metric.of`.
    """
    if metric is not None and not isinstance(metric, str):
        return task, metric
    found = Metric.of({None: "logit_difference", "kl": "negative_kl"}.get(metric, str(metric)), task)
    return (task.forced() if found.kind in _WHOLE_ANSWERS and found.rows else task), found


def values_of(metric: Metric | Callable[[Any], Any], logits_BTV: Tensor, *, gradient: bool = False) -> Tensor:
    """(B,) the number of each prompt; (1,) where a callable returns one number for all.

    Args:
        metric: a metric, or a callable of logits (B, T, V).
        gradient: the logits need a gradient, and the result must have one.

    Raises:
        ConfigError: the callable returned something else, or a result without gradient where one is needed.
    """
    import torch

    found = metric.per_prompt(logits_BTV) if isinstance(metric, Metric) else metric(logits_BTV)
    name = metric_name(metric)
    if gradient and not (isinstance(found, torch.Tensor) and found.requires_grad):
        raise ConfigError(
            f"The metric {name} has no gradient with respect to the logits.",
            "Compute it from the logits with torch operations that have gradients (no .item(), .detach(), numpy, argmax or "
            "torch.no_grad), or use a method without gradients, such as ablation.",
        )
    found = torch.as_tensor(found)
    if found.ndim > 1 or (found.ndim == 1 and len(found) != len(logits_BTV)):
        raise ConfigError(
            f"The metric {name} returned the shape {tuple(found.shape)} for {len(logits_BTV)} prompts.",
            "Return a number, or one for each prompt.",
        )
    return found.reshape(-1)


def metric_name(metric: Metric | Callable[[Any], Any]) -> str:
    """The kind of a metric, or the name of a callable, for records and messages."""
    return metric.kind if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)
