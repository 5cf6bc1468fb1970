"""Success against cost: arms that steer towards one goal, compared at equal KL divergence on neutral text.

Equal strengths of two methods do not disturb a model equally, so each arm is calibrated to each budget first (iso-KL). Prompting
has no strength: its divergence is measured, and it is a point of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.calibrate import Calibrated, Costs
from saekit.evaluate.steering.degenerate import repetition, warnings_of
from saekit.evaluate.steering.side_effects import kl, perplexity_alone
from saekit.lm.run.next_token import last_residuals, logits_of
from saekit.locate.scored import bootstrap
from saekit.steer.intervention import Intervention
from saekit.steer.scaling import scaled

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

BUDGETS = (0.25, 0.5, 1.0, 2.0)
"""Mean KL on neutral text, in nats a token."""


@dataclass(frozen=True)
class Prompting:
    """The control that steers by words: a text before each prompt."""

    text: str


@dataclass(frozen=True)
class Fixed:
    """Steering that is measured as it is, such as an ablation, which has no strength to calibrate."""

    intervention: Intervention


Arm = Intervention | Prompting | Fixed


@dataclass(frozen=True)
class Goal:
    """What steering is to achieve, and where that is measured.

    Attributes:
        success: the share of the goal, 0 to 1, that a continuation reaches. An empty text, or one repeated word, reaches nothing.
        prompts: prompts that no arm was made from.
        neutral: texts as rows of token ids that have nothing to do with the goal; the KL is measured on them.
        max_new_tokens: length of a continuation, chosen greedily.

    Raises:
        ConfigError: there is no prompt.
    """

    success: Callable[[str], float]
    prompts: Sequence[str]
    neutral: Sequence[Sequence[int]]
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("There is no prompt to steer.", "Give at least one.")


@dataclass(frozen=True)
class Reached:
    """What one arm reaches at one cost.

    Attributes:
        arm: its name.
        budget: the KL asked for; None for the unsteered model, for prompting, and for what is measured as it is.
        kl: the KL measured, in nats a token.
        factor: what the strengths of the arm were multiplied by; None where it has none.
        scores: success on each prompt.
        perplexity: of the continuations without their prompts, under the unsteered model.
        repetition: share of the most frequent word in a continuation.
        sample: the continuation of the first prompt.
    """

    arm: str
    budget: float | None
    kl: float
    factor: float | None
    scores: tuple[float, ...]
    perplexity: float
    repetition: float
    sample: str

    @property
    def value(self) -> float:
        """Mean success over the prompts."""
        return fmean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the 95 % bootstrap interval over prompts of the success."""
        low, high = bootstrap(torch.tensor(self.scores, dtype=torch.double)[None])
        return {
            "arm": self.arm,
            "budget": self.budget,
            "kl": self.kl,
            "success": self.value,
            "interval": [float(low[0]), float(high[0])],
            "factor": self.factor,
            "perplexity": self.perplexity,
            "repetition": self.repetition,
            "sample": self.sample,
        }


@dataclass(frozen=True)
class Frontier:
    """Result of :func:`frontier`.

    Attributes:
        baseline: the unsteered model.
        points: every arm at every budget that it can meet.
        failures: why an arm lacks points, by name.
    """

    baseline: Reached
    points: tuple[Reached, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def of(self, arm: str) -> list[Reached]:
        """The points of an arm, by cost."""
        return sorted((each for each in self.points if each.arm == arm), key=lambda each: each.kl)

    def differences(self, arm: str) -> list[dict[str, Any]]:
        """How far an arm succeeds more often than each other one at equal cost, by rows.

        A row has the mean difference over the prompts, and its 95 % interval by a bootstrap over the prompts, which are the same
        for both.
        """
        found, mine = [], self.of(arm)
        for other in (each for each in self.points if each.arm != arm and mine):
            # What has no strength is compared with the point whose cost is nearest.
            nearest = min(mine, key=lambda own: abs(own.kl - other.kl))
            for own in mine:
                equal = own.budget == other.budget if None not in (own.budget, other.budget) else own is nearest
                if equal:
                    paired = torch.tensor([a - b for a, b in zip(own.scores, other.scores)], dtype=torch.double)
                    low, high = bootstrap(paired[None])
                    cost = {"budget": own.budget, "kl": own.kl, "other_kl": other.kl}
                    more = {"difference": float(paired.mean()), "interval": [float(low[0]), float(high[0])]}
                    found.append({"arm": arm, "other": other.arm, **cost, **more})
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "baseline": self.baseline.to_dict(),
            "points": [each.to_dict() for each in self.points],
            "failures": dict(self.failures),
        }


def frontier(lm: LanguageModel, arms: Mapping[str, Arm], goal: Goal, budgets: Sequence[float] = BUDGETS) -> Frontier:
    """Measure the success of each arm at each KL budget, greedily, with all budgets of an arm in one batch.

    Args:
        lm: the model.
        arms: interventions that are resolved or have raw strengths, of operations with a strength; or prompting.
        goal: what success is.
        budgets: mean KL on the neutral texts, in nats a token.

    Raises:
        CorpusError: the neutral texts have no token to compare at.
        UnknownRef: the model has no such object.
    """
    failures: dict[str, str] = {}
    points: list[Reached] = []
    for name, arm in arms.items():
        if isinstance(arm, Prompting):
            points.append(_prompted(lm, name, arm, goal))
            continue
        if isinstance(arm, Fixed):
            points.append(_as_it_is(lm, name, arm.intervention, goal))
            continue
        met: list[Calibrated] = []
        costs = Costs(lm, arm.resolve(lm), goal.neutral)
        try:
            met = costs.meet(*budgets)
        except InterventionError as error:  # some budget is out of reach
            failures[name] = error.what
            met = _reachable(costs, budgets)
        if met:
            points += _steered(lm, name, arm.resolve(lm), met, goal)
    made = lm.generate(list(goal.prompts), max_new_tokens=goal.max_new_tokens, do_sample=False)
    return Frontier(_reached(lm, "unsteered", None, 0.0, None, made.texts, goal), tuple(points), failures)


def _reachable(costs: Costs, budgets: Sequence[float]) -> list[Calibrated]:
    met = []
    for budget in budgets:
        with suppress(InterventionError):
            met += costs.meet(budget)
    return met


def _steered(lm: LanguageModel, name: str, arm: Intervention, met: Sequence[Calibrated], goal: Goal) -> list[Reached]:
    factors = [each.factor for each in met for _ in goal.prompts]
    made = lm.generate(
        list(goal.prompts) * len(met),
        interventions=[scaled(arm, factors) if len(factors) > 1 else scaled(arm, factors[0])],
        max_new_tokens=goal.max_new_tokens,
        do_sample=False,
    )
    size = len(goal.prompts)
    return [
        _reached(lm, name, each.budget, each.kl, each.factor, made.texts[i * size : (i + 1) * size], goal)
        for i, each in enumerate(met)
    ]


def _prompted(lm: LanguageModel, name: str, arm: Prompting, goal: Goal) -> Reached:
    made = lm.generate([arm.text + prompt for prompt in goal.prompts], max_new_tokens=goal.max_new_tokens, do_sample=False)
    return _reached(lm, name, None, prompting_kl(lm, arm, goal.neutral), None, made.texts, goal)


def _as_it_is(lm: LanguageModel, name: str, arm: Intervention, goal: Goal) -> Reached:
    bound = arm.bind(lm)
    made = lm.generate(list(goal.prompts), interventions=[bound], max_new_tokens=goal.max_new_tokens, do_sample=False)
    return _reached(lm, name, None, kl(lm, bound, goal.neutral, positions="all"), None, made.texts, goal)


def _reached(
    lm: LanguageModel, arm: str, budget: float | None, cost: float, factor: float | None, texts: Sequence[str], goal: Goal
) -> Reached:
    scores = tuple(0.0 if warnings_of([text]) else float(goal.success(text)) for text in texts)
    return Reached(arm, budget, cost, factor, scores, perplexity_alone(lm, texts), repetition(texts), texts[0])


@torch.no_grad()
def prompting_kl(lm: LanguageModel, arm: Prompting, rows: Sequence[Sequence[int]], batch_size: int = 8) -> float:
    """Mean KL(base || prompted) at the ordinary tokens of texts, in nats a token: the text before them is the only difference.

    Args:
        rows: texts as token ids, with a BOS where the model has one.
    """
    (opening,) = lm.text.ids([arm.text])
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        some = [list(row) for row in rows[start : start + batch_size]]
        # What begins a text without the prompt (a BOS) begins it once with the prompt, too.
        shared = [1 if row[:1] == opening[:1] and not _ordinary(lm, row[:1]) else 0 for row in some]
        longer = [[*opening, *row[skip:]] for row, skip in zip(some, shared)]
        ordinary = [[(b, t) for t in _places(lm, row)] for b, row in enumerate(some)]
        pairs = [place for places in ordinary for place in places]
        moved = [(b, t + len(opening) - shared[b]) for b, t in pairs]
        resids = [_residuals(lm, texts, places) for texts, places in ((some, pairs), (longer, moved))]
        for _, (base, prompted) in logits_of(lm, *resids):
            p, q = base.log_softmax(-1), prompted.log_softmax(-1)
            total += float(kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp_min(0).double().sum())
            count += len(p)
    if not count:
        raise ConfigError("There is no token to compare at.", "Give texts with at least one ordinary token.")
    return total / count


def _ordinary(lm: LanguageModel, ids: Sequence[int]) -> bool:
    return bool(lm.ordinary(torch.tensor([list(ids)])).any())


def _places(lm: LanguageModel, row: Sequence[int]) -> list[int]:
    return list(lm.ordinary(torch.tensor([list(row)]))[0].nonzero().flatten().tolist())


def _residuals(lm: LanguageModel, rows: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]) -> Tensor:
    tokens_BT, mask_BT = lm.text.pad(rows, "right")
    b, t = (torch.tensor(side) for side in zip(*places))
    return last_residuals(lm, tokens_BT, (b, t), attention_mask=mask_BT)
