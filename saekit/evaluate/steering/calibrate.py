"""The strength at which an intervention costs a given KL divergence on neutral text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.side_effects import TokenEffects, kl_tail, token_effects
from saekit.lm.run.batches import text_rows
from saekit.steer.intervention import Intervention
from saekit.steer.scaling import scaled

if TYPE_CHECKING:
    from saekit.evaluate.steering.side_effects import Texts
    from saekit.lm import LanguageModel, Positions

_GRID = 8
"""Strengths of a round, measured in one batch."""
_ROUNDS = 8
_WIDEST = 2.0**24
TOLERANCE = 0.02
"""Largest difference from the budget, as a share of it."""


@dataclass(frozen=True)
class Calibrated:
    """Result of :func:`calibrate`."""

    intervention: Intervention
    """Resolved, at the strength found."""
    factor: float
    """What every strength of the given intervention was multiplied by."""
    budget: float
    """In nats a token."""
    tail: bool
    """Whether the budget is for :func:`kl_tail` instead of the mean."""
    kl: float
    """Mean KL on the neutral texts at that strength, in nats a token."""
    kl_tail: float
    """Mean KL of the worst 5 % of the early tokens."""
    measured: tuple[tuple[float, float], ...]
    """(factor, cost) of all strengths that were tried, ascending."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        strengths = [{"target": str(c.target), "op": c.op, "strength": str(c.strength)} for c in self.intervention.changes]
        return {
            "strengths": strengths,
            "factor": self.factor,
            "budget": self.budget,
            "of": "tail" if self.tail else "mean",
            "kl": self.kl,
            "kl_tail": self.kl_tail,
            "measured": [{"factor": factor, "cost": cost} for factor, cost in self.measured],
        }


def effects_by_factor(
    lm: LanguageModel, intervention: Intervention, factors: Sequence[float], texts: Texts, positions: Positions | None = None
) -> list[TokenEffects]:
    """The effects on predictions at several strengths, which run in one batch.

    Args:
        intervention: resolved; see :func:`saekit.steer.scaling.scaled`.
        factors: what its strengths are multiplied by.
        texts: neutral texts or rows of token ids.
        positions: tokens steered by changes that name none; None is "all".
    """
    rows, K = text_rows(lm, texts), len(factors)
    bound = scaled(intervention, tuple(factors)).bind(lm)
    # A row for each factor, side by side: texts of one length stay together, and a batch has all strengths.
    effects = token_effects(
        lm,
        bound,
        [row for row in rows for _ in factors],
        positions=positions,
        prompt_of_text=[k for _ in rows for k in range(K)],
        batch_size=max(K, K * (8 // K)),
    )
    found = []
    for k in range(K):
        mine = effects.text % K == k
        found.append(
            TokenEffects(
                effects.kl[mine],
                effects.text[mine] // K,
                effects.place[mine],
                effects.loss[mine],
                effects.steered_loss[mine],
                effects.right[mine],
                effects.steered_right[mine],
            )
        )
    return found


def calibrate(
    lm: LanguageModel,
    intervention: Intervention,
    budget: float,
    texts: Texts,
    *,
    tail: bool = False,
    positions: Positions | None = None,
) -> Calibrated:
    """Find the least strength at which the KL on neutral text meets a budget: then interventions compare fairly.

    A round measures eight strengths in one batch. The first round spans a factor of 128 around the given strength; later rounds
    narrow the interval in which the cost first passes the budget. There is no random choice.

    Args:
        lm: the model.
        intervention: resolved, of operations with a strength (clamp, add). All its strengths are multiplied by one factor.
        budget: mean KL(base || steered) in nats a token, or with `tail` that of the worst 5 % of the early tokens.
        texts: neutral texts or rows of token ids.
        positions: tokens steered by changes that name none; None is "all".

    Raises:
        ConfigError: the budget is not a positive number.
        CorpusError: there is no token to compare at.
        InterventionError: a change has no strength to vary, or no strength meets the budget.
    """
    if not 0 < budget < float("inf"):
        raise ConfigError(f"A budget of {budget} nats is not possible.", "Give a positive number, like 0.5.")
    costs: dict[float, tuple[float, float]] = {}

    def measure(factors: Sequence[float]) -> None:
        for factor, effects in zip(factors, effects_by_factor(lm, intervention, factors, texts, positions), strict=True):
            costs[factor] = float(effects.kl.mean()), kl_tail(effects)

    low, high = _bracket(measure, costs, budget, tail)
    for _ in range(_ROUNDS):
        best = min(costs, key=lambda factor: (abs(costs[factor][tail] - budget), factor))
        if abs(costs[best][tail] - budget) <= TOLERANCE * budget:
            measured = tuple((factor, costs[factor][tail]) for factor in sorted(costs))
            return Calibrated(scaled(intervention, best), best, budget, tail, *costs[best], measured)
        step = (high / low) ** (1 / (_GRID + 1))
        measure([low * step**i for i in range(1, _GRID + 1)])
        low, high = _first_crossing(costs, budget, tail) or (low, high)
    raise InterventionError(
        f"The KL of the intervention jumps past {budget:g} nats near {high:g} times its strength.", "Choose another budget."
    )


def _bracket(measure: Any, costs: dict[float, tuple[float, float]], budget: float, tail: bool) -> tuple[float, float]:
    """The factors between which the cost first passes the budget."""
    exponent = -4
    measure([2.0 ** (exponent + i) for i in range(_GRID)])
    while (found := _first_crossing(costs, budget, tail)) is None:
        least, most = min(costs), max(costs)
        below = costs[least][tail] >= budget
        if least < 1 / _WIDEST or most > _WIDEST:
            limit = (min if below else max)(cost[tail] for cost in costs.values())
            side = "not less than" if below else "at most"
            raise InterventionError(
                f"No strength costs {budget:g} nats: the KL is {side} {limit:.3g}.",
                "Choose another budget" + (", or add instead of clamp: clamp at 0 is an ablation." if below else "."),
            )
        measure([(least * 2.0**-i if below else most * 2.0**i) for i in range(1, _GRID + 1)])
    return found


def _first_crossing(costs: dict[float, tuple[float, float]], budget: float, tail: bool) -> tuple[float, float] | None:
    factors = sorted(costs)
    for low, high in pairwise(factors):
        if costs[low][tail] < budget <= costs[high][tail]:
            return low, high
    return None
