"""The strength at which an intervention costs a given KL divergence on neutral text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isnan, log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.side_effects import TokenEffects, batch_effects, batch_residuals, batches_of, joined, kl_tail
from saekit.lm.run.batches import text_rows
from saekit.names.positions import GENERATION
from saekit.steer.intervention import BoundIntervention, Intervention
from saekit.steer.scaling import scaled

if TYPE_CHECKING:
    from saekit.evaluate.steering.side_effects import Texts
    from saekit.lm import LanguageModel, Positions

_GRID = 8
"""Strengths of a round that looks for a bracket, measured in one batch."""
_TEXTS = 32
"""Texts of a batch, counted once for each strength."""
_ROUNDS = 24
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
    lm: LanguageModel,
    intervention: Intervention,
    factors: Sequence[float],
    texts: Texts,
    positions: Positions | None = None,
    *,
    continuations: Sequence[Sequence[int]] | None = None,
    arm: Callable[[BoundIntervention], Any] | None = None,
) -> list[TokenEffects]:
    """The effects on predictions at several strengths, which run in one batch.

    Args:
        intervention: resolved; see :func:`saekit.steer.scaling.scaled`.
        factors: what its strengths are multiplied by.
        texts: neutral texts or rows of token ids.
        positions: tokens steered by changes that name none; None is "all", or with continuations what `lm.generate` does.
        continuations: token ids that follow each text; the effects are then those on their tokens.
        arm: makes what is measured from the intervention at all strengths, such as its control; None measures itself.
    """
    rows, K = text_rows(lm, texts), len(factors)
    bound: Any = scaled(intervention, tuple(factors)).bind(lm)
    bound = bound if arm is None else arm(bound)
    parts: list[list[list[Tensor]]] = [[] for _ in factors]
    for batch in batches_of(lm, rows, continuations, max(1, _TEXTS // K)):
        number = torch.arange(K).repeat_interleave(len(batch.tokens_BT))
        where = positions if positions is not None else "all" if continuations is None else GENERATION
        base_ND = batch_residuals(lm, batch, None, where, batch.number_B)
        steered_ND = batch_residuals(lm, batch, bound, where, number, copies=K)
        found = batch_effects(lm, batch, base_ND, steered_ND.view(K, *base_ND.shape))
        parts = [one + more for one, more in zip(parts, found, strict=True)]
    return [joined(each) for each in parts]


def calibrate(
    lm: LanguageModel,
    intervention: Intervention,
    budget: float,
    texts: Texts,
    *,
    tail: bool = False,
    positions: Positions | None = None,
) -> Calibrated:
    """Find the least strength at which the KL on neutral text rises to a budget: then interventions compare fairly.

    The first round measures eight strengths in one batch, which span a factor of 128 around the given one; later rounds narrow
    the interval in which the cost first rises past the budget. A clamp at 0 already ablates, so that its cost may fall
    before it rises: the strength found is then the one after the fall. There is no random choice.

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
    return Costs(lm, intervention, texts, tail=tail, positions=positions).meet(budget)[0]


class Costs:
    """The cost of an intervention by strength. Several budgets share what was measured.

    Args:
        lm, intervention, texts, tail, positions: as for :func:`calibrate`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        intervention: Intervention,
        texts: Texts,
        *,
        tail: bool = False,
        positions: Positions | None = None,
    ) -> None:
        self.lm, self.intervention, self.tail, self.positions = lm, intervention, tail, positions
        self.rows = text_rows(lm, texts)
        self.measured: dict[float, tuple[float, float]] = {}
        """Mean KL and KL of the tail, by factor."""

    def meet(self, *budgets: float) -> list[Calibrated]:
        """The least strength whose cost rises to each budget. Errors: those of :func:`calibrate`.

        A round measures one strength for each budget that is not met, all in one batch: by interpolation of the logarithms
        (regula falsi), and every third time in the middle of the interval.
        """
        for budget in budgets:
            if not 0 < budget < inf:
                raise ConfigError(f"A budget of {budget} nats is not possible.", "Give a positive number, like 0.5.")
        if not budgets:
            return []
        for budget in budgets:
            self._find_bracket(budget)
        for turn in range(_ROUNDS):
            best = {budget: self._nearest(budget) for budget in budgets}
            open_ = [budget for budget in budgets if abs(self._cost(best[budget]) - budget) > TOLERANCE * budget]
            if not open_:
                return [self._met(budget, best[budget]) for budget in budgets]
            self._measure(dict.fromkeys(self._between(budget, middle=turn % 3 == 2) for budget in open_))
        _, high = self._bracket(open_[0])
        raise InterventionError(
            f"The KL of the intervention jumps past {open_[0]:g} nats near {high:g} times its strength.", "Choose another budget."
        )

    def _met(self, budget: float, factor: float) -> Calibrated:
        measured = tuple((each, self._cost(each)) for each in sorted(self.measured))
        return Calibrated(scaled(self.intervention, factor), factor, budget, self.tail, *self.measured[factor], measured)

    def _nearest(self, budget: float) -> float:
        """The end of the bracket whose cost is nearest to the budget."""
        return min(self._bracket(budget), key=lambda factor: abs(self._cost(factor) - budget))

    def _between(self, budget: float, middle: bool) -> float:
        """The strength to try next in the bracket of a budget."""
        low, high = self._bracket(budget)
        costs = self._cost(low), self._cost(high)
        share = 0.5
        if not middle and 0 < costs[0] < costs[1] < inf:
            share = min(max(log(budget / costs[0]) / log(costs[1] / costs[0]), 0.02), 0.98)
        return low * (high / low) ** share

    def _cost(self, factor: float) -> float:
        """The cost that the budget is for; infinite where the predictions are not numbers."""
        cost = self.measured[factor][self.tail]
        return inf if isnan(cost) else cost

    def _measure(self, factors: Iterable[float]) -> None:
        new = [factor for factor in factors if factor not in self.measured]
        found = effects_by_factor(self.lm, self.intervention, new, self.rows, self.positions) if new else []
        for factor, effects in zip(new, found, strict=True):
            self.measured[factor] = float(effects.kl.mean()), kl_tail(effects)

    def _bracket(self, budget: float) -> tuple[float, float]:
        """Neighbours between which the cost first rises past the budget; after :meth:`_find_bracket` there are some."""
        found = self._crossing(budget)
        assert found is not None, "measuring more strengths keeps a crossing"
        return found

    def _crossing(self, budget: float) -> tuple[float, float] | None:
        pairs = pairwise(sorted(self.measured))
        return next(((low, high) for low, high in pairs if self._cost(low) < budget <= self._cost(high)), None)

    def _find_bracket(self, budget: float) -> None:
        """Measure until the cost rises past the budget between two strengths."""
        self._measure([2.0**exponent for exponent in range(-4, _GRID - 4)])
        looked = False
        while self._crossing(budget) is None:
            factors = sorted(self.measured)
            least, most = factors[0], factors[-1]
            lowest = min(factors, key=self._cost)
            too_low = self._cost(most) < budget
            rises = too_low or lowest == most  # a clamp costs least where it hardly changes anything, and more beyond
            if not rises and least < lowest and not looked:
                # The cost falls and rises again: between the measured strengths it may be below the budget.
                place = factors.index(lowest)
                low, high = factors[place - 1], factors[place + 1]
                self._measure([low * (high / low) ** (i / (_GRID + 1)) for i in range(1, _GRID + 1)])
                looked = True
                continue
            if least < 1 / _WIDEST or most > _WIDEST:
                raise self._out_of_reach(budget, too_low)
            self._measure([(most * 2.0**i if rises else least * 2.0**-i) for i in range(1, _GRID + 1)])

    def _out_of_reach(self, budget: float, too_low: bool) -> InterventionError:
        costs = [self._cost(factor) for factor in self.measured]
        said = f"at most {max(costs):.3g}" if too_low else f"not less than {min(costs):.3g}"
        hint = "." if too_low else ", or add instead of clamp: clamp at 0 is an ablation."
        return InterventionError(f"No strength costs {budget:g} nats: the KL is {said}.", f"Choose another budget{hint}")
