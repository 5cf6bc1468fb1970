"""Tuning as a change: the methods of :mod:`saekit.steer.optimise` with the steps and the neutral texts of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saekit.evaluate.changed import Change
from saekit.improve.trial import Trial
from saekit.steer.optimise import Problem, TuneSettings, tune
from saekit.steer.weights import WeightDelta

if TYPE_CHECKING:
    from saekit.steer.optimise import Tuned


@dataclass(frozen=True)
class TunedChange:
    """What tuning gave, as a change, with the number of its parameters."""

    change: Change
    parameters: int
    tuned: Tuned


def tuned(
    trial: Trial,
    loss: Any,
    method: str,
    objects: Any = None,
    *,
    steps: int = 120,
    lr: float = 1e-3,
    preserve: float = 1.0,
    fraction: float | None = None,
    options: dict[str, Any] | None = None,
) -> TunedChange:
    """Tune by a row of :data:`saekit.steer.optimise.TUNERS`, with KL to the unchanged model on neutral texts.

    Args:
        loss: made by :func:`saekit.steer.optimise.objective` of data for fitting.
        objects: refs or a ranking, for methods that take them.
        steps, lr, preserve: of the loop; 2 steps of half the size in quick mode.
        fraction: share of the parameters, for methods that choose.
        options: of the method.
    """
    steps, batch = (2, 4) if trial.quick else (steps, 8)
    settings = TuneSettings(steps=steps, batch=batch, lr=lr, preserve=preserve, seed=trial.seed)
    neutral = trial.neutral if preserve else None
    problem = Problem(trial.lm, loss, neutral, settings, objects, fraction, progress=trial.progress)
    found = tune(problem, method, options)
    weights = isinstance(found.change, WeightDelta)
    change = Change(deltas=(found.change,)) if weights else Change(interventions=(found.change,))  # type: ignore[arg-type]
    return TunedChange(change, found.count, found)


class Under:
    """A loss of a model with edits of activations on."""

    def __init__(self, loss: Any, edits: Sequence[Any]) -> None:
        self.loss, self.edits, self.groups = loss, list(edits), loss.groups

    def __call__(self, index: Sequence[int], edits: Sequence[Any] = ()) -> Any:
        return self.loss(index, [*edits, *self.edits])
