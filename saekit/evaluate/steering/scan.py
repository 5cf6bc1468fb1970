"""A scan of strengths: the target against what it costs, all strengths in one batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saekit.errors import ConfigError
from saekit.evaluate.report import Report, Section, decimals
from saekit.evaluate.steering.calibrate import effects_by_factor
from saekit.evaluate.steering.degenerate import repetition
from saekit.evaluate.steering.side_effects import kl_tail, perplexity, perplexity_alone
from saekit.names.positions import GENERATION
from saekit.steer.control import RandomControl
from saekit.steer.intervention import Intervention
from saekit.steer.scaling import scaled

if TYPE_CHECKING:
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.lm import Generation, LanguageModel, Positions

STRENGTHS = 8
"""Strengths of a range, where no number of them is given."""
_RAISED = 20
_RANGE = re.compile(r"(?P<low>[0-9.eE+-]+):(?P<high>[0-9.eE+-]+)(?::(?P<count>[0-9]{1,3}))?")


def parse_strengths(text: str) -> list[float]:
    """The numbers of ".2:1.5" (eight of equal ratio), ".2:1.5:5" (five), or ".2,.5,1".

    Raises:
        ConfigError: the text is none of these, or a number is not positive and finite.
    """
    try:
        if match := _RANGE.fullmatch(text.strip()):
            low, high, count = float(match["low"]), float(match["high"]), int(match["count"] or STRENGTHS)
            if not 0 < low < high < float("inf") or count < 2:
                raise ValueError
            return [low * (high / low) ** (i / (count - 1)) for i in range(count)]
        numbers = [float(part) for part in text.split(",")]
        if not all(0 < number < float("inf") for number in numbers):
            raise ValueError
    except ValueError as error:
        raise ConfigError(f"{text!r:.80} are no strengths to scan.", "Write .2:1.5, .2:1.5:5, or .2,.5,1.") from error
    return sorted(set(numbers))


@dataclass(frozen=True)
class ScanArm:
    """Continuations at one strength, and their measures."""

    texts: list[str]
    """n_samples for each prompt, side by side."""
    target: float
    """Share of the words that name the concept, or of the tokens that steering raises most."""
    perplexity: float
    """Of the continuations after their prompts, under the unsteered model."""
    alone: float
    """Of the continuations without their prompts."""
    repetition: float
    """Share of the words of a continuation that are its most frequent word; NaN without words."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {"target": self.target, "perplexity": self.perplexity, "perplexity_alone": self.alone}
        values["repetition"] = self.repetition
        return {name: value if value - value == 0 else None for name, value in values.items()} | {"texts": self.texts}


@dataclass(frozen=True)
class ScanPoint:
    """One strength."""

    factor: float
    """What the strengths of the intervention are multiplied by."""
    strengths: list[str]
    """Of each change, as text."""
    kl: float
    """KL(base || steered) on the unsteered continuations, in nats a token."""
    kl_tail: float
    """The same of the worst 5 % of the early tokens."""
    steered: ScanArm
    random: ScanArm | None
    """With a push of equal length in a random direction."""
    random_kl: float | None = None


@dataclass(frozen=True)
class Scan(Report):
    """Result of :func:`scan`."""

    name: ClassVar[str] = "scan"
    prompts: list[str]
    n_samples: int
    target: str
    """What counts as the target, in words."""
    raised: list[str]
    """The tokens that steering raises most, where they are the target."""
    baseline: ScanArm
    points: list[ScanPoint]
    """In ascending order of strength."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values: null for a measure that is not finite."""
        return {
            "prompts": self.prompts,
            "samples": self.n_samples,
            "target": self.target,
            "raised": self.raised,
            "baseline": self.baseline.to_dict(),
            "points": [
                {
                    "factor": point.factor,
                    "strengths": point.strengths,
                    "kl": point.kl,
                    "kl_tail": point.kl_tail,
                    "steered": point.steered.to_dict(),
                    **({} if point.random is None else {"random": point.random.to_dict(), "random_kl": point.random_kl}),
                }
                for point in self.points
            ],
        }

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """(KL, target) at strength 0 and each other, of the steered and the random texts."""
        start = (0.0, self.baseline.target)
        randoms = [(point.random_kl or 0.0, point.random.target) for point in self.points if point.random is not None]
        return {
            "steered": [start, *((point.kl, point.steered.target) for point in self.points)],
            "random": [start, *randoms],
        }

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A strength a row."""
        rows = [_row("0", data["baseline"], {"kl": 0.0, "kl_tail": 0.0}, data["points"][0].get("random") and data["baseline"])]
        rows += [_row(" ".join(point["strengths"]), point["steered"], point, point.get("random")) for point in data["points"]]
        relative = "KL in nats a token on the unsteered continuations; perplexity under the unsteered model"
        return Section("scan", rows, [f"target: {data['target']}", relative])


def _row(strength: str, arm: Mapping[str, Any], costs: Mapping[str, Any], random: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "strength": strength,
        "target": f"{arm['target']:.1%}",
        **({"random": f"{random['target']:.1%}"} if random else {}),
        "KL": decimals(costs["kl"]),
        "KL tail": decimals(costs["kl_tail"]),
        "perplexity": decimals(arm["perplexity"], 2),
        "alone": decimals(arm["perplexity_alone"], 2),
        "repetition": decimals(arm["repetition"], 2),
    }


@dataclass(frozen=True)
class ScanSettings:
    """How a scan generates.

    Attributes:
        n_samples: continuations of each prompt.
        do_sample: whether to sample; None: if `n_samples` is more than 1.
        max_new_tokens: length of a continuation.
        seed: of the sampling and of the random direction.
        control: whether to push along a random direction too.
        positions: tokens steered by changes that name none.
    """

    n_samples: int = 1
    do_sample: bool | None = None
    max_new_tokens: int = 48
    seed: int = 0
    control: bool = True
    positions: Positions | None = None


def scan(
    lm: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    intervention: Intervention,
    factors: Sequence[float],
    mentions: Mentions | None = None,
    settings: ScanSettings | None = None,
) -> Scan:
    """Generate at several strengths with the same noise, in one batch, and measure the target and the costs.

    Args:
        lm: the model.
        prompts: texts, or rows of token ids.
        intervention: resolved, of operations with a strength.
        factors: what its strengths are multiplied by, one after the other.
        mentions: finds the concept's words; None: the target are the 20 tokens whose logits the intervention raises most after
            the prompts.

    Raises:
        ConfigError: there is no prompt or no factor.
        InterventionError: a change has no strength that can vary.
    """
    settings, prompts = settings or ScanSettings(), list(prompts)  # type: ignore[assignment]
    if not prompts or not factors:
        raise ConfigError("A scan needs a prompt and a strength.")
    intervention = intervention.resolve(lm)
    n, P = settings.n_samples, len(prompts)
    bound = scaled(intervention, tuple(factor for factor in factors for _ in prompts)).bind(lm)

    def generated(texts: Sequence[Any], arms: Sequence[Any]) -> Generation:
        return lm.generate(
            list(texts),
            interventions=arms,
            positions=settings.positions,
            seed=settings.seed,
            n_samples=n,
            do_sample=settings.do_sample,
            max_new_tokens=settings.max_new_tokens,
        )

    base = generated(prompts, [])
    rows = base.prompt_tokens[::n]
    raised = [] if mentions is not None else raised_tokens(lm, rows, intervention, settings.positions)
    rate = _rate(mentions, set(raised))
    repeated = [prompt for _ in factors for prompt in prompts]
    steered = _arms(lm, generated(repeated, [bound]), P * n, rate)
    randoms: list[ScanArm | None] = [None] * len(factors)
    if settings.control:
        randoms = list(_arms(lm, generated(repeated, [RandomControl(bound, settings.seed)]), P * n, rate))
    arms: list[Any] = [None, *([lambda bound: RandomControl(bound, settings.seed)] if settings.control else [])]
    effects, *others = (
        effects_by_factor(
            lm, intervention, list(factors), base.prompt_tokens, settings.positions, continuations=base.tokens, arm=arm
        )
        for arm in arms
    )
    random_kls: list[float | None] = [float(each.kl.mean()) for each in others[0]] if others else [None for _ in factors]
    points = [
        ScanPoint(factor, _strengths(intervention, factor), float(cost.kl.mean()), kl_tail(cost), arm, control, random_kl)
        for factor, cost, arm, control, random_kl in zip(factors, effects, steered, randoms, random_kls, strict=True)
    ]
    what = "words that name the concept" if mentions is not None else f"the {len(raised)} tokens that steering raises most"
    shown = lm.text.token_strings(raised) if raised else []
    return Scan(base.prompts[::n], n, what, shown, _arms(lm, base, P * n, rate)[0], points)


def _strengths(intervention: Intervention, factor: float) -> list[str]:
    strengths = [change.strength for change in scaled(intervention, factor).changes]
    return list(dict.fromkeys(f"{each.values[0]:.3g}{each.unit}" for each in strengths))


@torch.no_grad()
def raised_tokens(
    lm: LanguageModel, rows: Sequence[Sequence[int]], intervention: Intervention, positions: Positions | None = None
) -> list[int]:
    """The tokens whose logits after the prompts the intervention raises most on average, the mean logit taken off."""
    settings: dict[str, Any] = {"logits": "last", "positions": GENERATION if positions is None else positions}
    total: Any = 0.0
    for row in rows:
        steered, base = (lm.run([list(row)], edits=edits, **settings).logits for edits in ([intervention.bind(lm)], []))
        assert steered is not None and base is not None
        total = total + (steered - base)[0].double()
    special = [index for index in lm.text.special_ids if index < len(total)]
    total[special] = -torch.inf
    return [int(index) for index in total.topk(min(_RAISED, len(total))).indices]


def _rate(mentions: Mentions | None, raised: set[int]) -> Callable[[Sequence[str], Sequence[Sequence[int]]], float]:
    def rate(texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> float:
        if mentions is not None:
            return mentions.rate(texts).value
        count = sum(map(len, tokens))
        return sum(token in raised for row in tokens for token in row) / count if count else 0.0

    return rate


def _arms(lm: LanguageModel, made: Generation, block: int, rate: Callable[..., float]) -> list[ScanArm]:
    """The measures of each block of continuations."""
    found = []
    for start in range(0, len(made.texts), block):
        some = slice(start, start + block)
        texts, tokens = made.texts[some], made.tokens[some]
        cost = perplexity(lm, made.prompt_tokens[some], continuations=tokens, batch_size=64).overall
        found.append(ScanArm(texts, rate(texts, tokens), cost, perplexity_alone(lm, texts), repetition(texts)))
    return found
