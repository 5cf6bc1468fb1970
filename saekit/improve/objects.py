"""Located objects as changes: how many are changed is chosen on the half of the data for fitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saekit.evaluate.changed import Change
from saekit.improve.effects import on_neutral_text
from saekit.improve.target import Target
from saekit.improve.trial import Trial
from saekit.steer import intervene
from saekit.tasks import Ranking

_NEUTRAL = 8
"""Neutral texts on which changes are compared."""
_ENOUGH = 0.95
"""The fewest objects are taken that reach this share of the best gain on the data for fitting."""


@dataclass(frozen=True)
class Ablation:
    """Objects that are ablated.

    Attributes:
        change: the ablation.
        chosen: the objects.
        ranking: what they were chosen from.
        tried: rows of number of objects and value on the data for fitting.
    """

    change: Change
    chosen: list[Any]
    ranking: Ranking
    tried: list[dict[str, Any]]

    @property
    def what(self) -> str:
        """The change as a phrase."""
        return f"{len(self.chosen)} of {len(self.ranking):,} {kinds(self.chosen)} ablated"

    def random(self, trial: Trial) -> Change:
        """A control: as many random objects of the ranking."""
        return Change((intervene("ablate", trial.random.sample(list(self.ranking), len(self.chosen))),))


def kinds(objects: Sequence[Any]) -> str:
    """What objects are, in words: "heads", "heads and neurons"."""
    return " and ".join(sorted({f"{ref.kind}s" for ref in objects}))


def counts(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found if found[-1] == most or most < 2 else [*found, most]


def fewest(trial: Trial, ranking: Ranking, target: Target, *, share: float = 0.05, by: str = "highest") -> Ablation:
    """Ablate the first objects of a ranking: the fewest of at most `share` that reach nearly the best gain.

    Args:
        trial: the recipe's run.
        ranking: objects by their score.
        target: measured on data for fitting.
        share: most objects, as a share of all.
        by: which end of the ranking: "highest", "lowest" or "magnitude".
    """
    before = float(trial.measure(target).mean())
    most = max(1, int(share * len(ranking)))
    order = list(ranking.top(most, by=by))
    tried: list[dict[str, Any]] = []
    for k in counts(most)[-1:] if trial.quick else counts(most):
        value = float(trial.measure(target, Change((intervene("ablate", order[:k]),))).mean())
        tried.append({"objects": k, "value": value, "gain": target.gain(before, value)})
    best = max(row["gain"] for row in tried)
    k = next(row["objects"] for row in tried if row["gain"] >= _ENOUGH * best)
    return Ablation(Change((intervene("ablate", order[:k]),)), order[:k], ranking, tried)


FACTORS = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0)
"""Factors that are tried where objects are scaled."""
SUPPRESSING = (0.0, -0.5, -1.0, -2.0)
"""Factors that take out what objects do, and turn it round."""


@dataclass(frozen=True)
class Scaling:
    """Objects that are scaled: fields as of :class:`Ablation`, and the factor."""

    change: Change
    chosen: list[Any]
    ranking: Ranking
    factor: float
    tried: list[dict[str, Any]]

    @property
    def what(self) -> str:
        """The change as a phrase."""
        return f"{len(self.chosen)} of {len(self.ranking):,} {kinds(self.chosen)} scaled by {self.factor:g}"

    def random(self, trial: Trial) -> Change:
        """A control: as many random objects of the ranking, scaled by the same factor."""
        return _scaled(trial.random.sample(list(self.ranking), len(self.chosen)), self.factor)


def best_scaling(
    trial: Trial,
    ranking: Ranking,
    target: Target,
    *,
    share: float = 0.05,
    by: str = "magnitude",
    factors: Sequence[float] = FACTORS,
    enough: float = 1.0,
) -> Scaling:
    """Scale the first objects of a ranking by the factor, and as many as, gain most on the data for fitting.

    Other arguments as for :func:`fewest`.

    Args:
        factors: that are tried.
        enough: below 1, what reaches this share of the best gain is chosen by its KL on neutral text, the least first.
    """
    before = float(trial.measure(target).mean())
    most = max(1, int(share * len(ranking)))
    order = list(ranking.top(most, by=by))
    tried: list[dict[str, Any]] = []
    for k in counts(most)[-1:] if trial.quick else counts(most):
        for factor in factors[::3] if trial.quick else factors:
            value = float(trial.measure(target, _scaled(order[:k], factor)).mean())
            tried.append({"objects": k, "factor": factor, "value": value, "gain": target.gain(before, value)})
    best = max(tried, key=lambda row: row["gain"])
    if enough < 1 and best["gain"] > 0:
        able = [row for row in tried if row["gain"] >= enough * best["gain"]]
        for row in able:
            change = _scaled(order[: row["objects"]], row["factor"])
            row["kl"] = on_neutral_text(trial.lm, change, trial.neutral[:_NEUTRAL])["kl"]
        best = min(able, key=lambda row: row["kl"])
    k, factor = best["objects"], best["factor"]
    return Scaling(_scaled(order[:k], factor), order[:k], ranking, factor, tried)


def _scaled(objects: list[Any], factor: float) -> Change:
    return Change((intervene("scale", objects, f"{factor:g}raw", positions="all"),))
