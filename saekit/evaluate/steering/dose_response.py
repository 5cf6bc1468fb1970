"""Dose response: mentions of a concept and perplexity of sampled text by strength, with a random push as control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any, ClassVar

from saekit.errors import ConfigError
from saekit.evaluate.report import Report, Section
from saekit.evaluate.steering.mentions import Mentions, Rate
from saekit.evaluate.steering.side_effects import perplexity, perplexity_alone
from saekit.steer.control import RandomControl
from saekit.steer.intervention import Intervention
from saekit.steer.strength import Strength

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_BATCH = 64
AFFORDABLE = 2.5
"""Largest perplexity, relative to natural text of the concept, at which steering counts as a success."""
_CLEAR = 0.05
"""Difference of shares from which on a reader sees the effect."""
_ENOUGH = 0.9
"""Share of the largest success that is enough: more strength than that costs much for little."""
_OF_WORDS = 0.3
"""A concept that names itself in this share of the words of its natural text, such as a language, is counted by words; one that
names itself more rarely, by texts."""
# The whole distribution: a concept that the model rarely names would not appear among its likeliest tokens.
_SAMPLING: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class Sampling:
    """How a sweep samples.

    Attributes:
        n_samples: continuations of each prompt, from the whole distribution.
        max_new_tokens: length of a continuation in tokens.
        controls: number of random directions, each used for all prompts and strengths.
        seed: seed of the sampling and of the random directions.
        temperature: divides the logits before sampling.

    Raises:
        ConfigError: there is less than one control.
    """

    n_samples: int = 4
    max_new_tokens: int = 40
    controls: int = 1
    seed: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.controls < 1:
            raise ConfigError(f"controls={self.controls} must be at least 1.")


@dataclass(frozen=True)
class Arm:
    """Texts sampled under one condition, and their measures."""

    texts: list[str]
    """Continuations, n_samples of each prompt side by side; with several controls, one such block for each."""
    rate: Rate
    """Mentions of the concept among the words of the continuations."""
    perplexity: float
    """Perplexity of the continuations after their prompts, under the unsteered model."""
    alone: float | None = None
    """Perplexity of the continuations without their prompts: text that changes its topic after the prompt is not improbable."""
    named: tuple[bool, ...] = ()
    """Whether each of the texts mentions the concept."""

    @property
    def of_texts(self) -> float:
        """Share of the texts that mention the concept."""
        return sum(self.named) / len(self.named) if self.named else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rate": self.rate.value,
            "of_texts": self.of_texts,
            "mentions": self.rate.hits,
            "words": self.rate.words,
            "perplexity": self.perplexity,
            "perplexity_alone": self.alone,
            "texts": self.texts,
        }


@dataclass(frozen=True)
class Point:
    """One strength."""

    strength: Strength
    steered: Arm
    random: Arm
    """Pushed as far at every token, along random directions."""


@dataclass(frozen=True)
class Natural:
    """Texts of the concept that nobody steered."""

    perplexity: float
    """Under the unsteered model."""
    rate: Rate
    """Mentions of the concept among their words."""


@dataclass(frozen=True)
class Sweep(Report):
    """Result of :func:`sweep`."""

    name: ClassVar[str] = "dose response"
    prompts: list[str]
    n_samples: int
    baseline: Arm
    points: list[Point]
    """One for each strength, in the order given."""
    natural: Natural | None = None
    """Natural texts of the concept, which costs are relative to."""

    def arms(self, point: Point) -> dict[str, Arm]:
        """The arms to show side by side, by name."""
        return {"baseline": self.baseline, "steered": point.steered, "random": point.random}

    @property
    def by_words(self) -> bool:
        """Whether success is the share of words that name the concept, instead of the share of texts."""
        return self.natural is None or self.natural.rate.value >= _OF_WORDS

    def share(self, arm: Arm) -> float:
        """The success of an arm: the share of its words that name the concept, or of its texts that do (:attr:`by_words`)."""
        return arm.rate.value if self.by_words else arm.of_texts

    def share_of_prompts(self, arm: Arm, mentions: Mentions) -> list[float]:
        """:meth:`share` of the continuations of each prompt; with several controls, of the first."""
        found = []
        for start in range(0, self.n_samples * len(self.prompts), self.n_samples):
            texts = arm.texts[start : start + self.n_samples]
            named = [bool(mentions.spans(text)) for text in texts]
            found.append(mentions.rate(texts).value if self.by_words else sum(named) / max(len(named), 1))
        return found

    def lift(self, arm: Arm) -> float:
        """Rate of an arm / rate of the baseline. A baseline without mentions counts as having one, which gives a lower bound."""
        words = max(self.baseline.rate.words, 1)
        return arm.rate.value / max(self.baseline.rate.value, 1 / words)

    def lift_text(self, arm: Arm) -> str:
        """:meth:`lift` as text, such as "5.2×"; empty where the baseline has no mention, because nothing is relative to zero."""
        return f"{self.lift(arm):.3g}×" if self.baseline.rate.hits else ""

    def cost(self, arm: Arm) -> float:
        """Perplexity of the continuations by themselves / that of natural texts of the concept.

        Where unsteered continuations by themselves have a larger one, it is relative to that.

        Without such texts: perplexity after the prompts / that of the baseline, which calls every change of the topic expensive.
        """
        if self.natural is not None and arm.alone is not None:
            # A continuation begins in the middle of a text, so that it may be less probable without its prompt than a whole text.
            return arm.alone / max(self.natural.perplexity, self.baseline.alone or 0.0)
        return arm.perplexity / self.baseline.perplexity

    @property
    def relative_to(self) -> str:
        """What :meth:`cost` is relative to, in words."""
        return "unsteered text" if self.natural is None else "natural text of the concept"

    def verdict(self, point: Point) -> str:
        """One sentence: whether steering worked at a strength, against the controls.

        It worked if the share (:meth:`share`) is at least twice that of both controls and 5 percentage points above them, at a
        cost of at most :data:`AFFORDABLE`.
        """
        steered, controls = self.share(point.steered), (self.share(self.baseline), self.share(point.random))
        clear = steered >= 2 * max(controls) and steered - max(controls) >= _CLEAR
        paid = self.cost(point.steered)
        said = "It worked" if clear and paid <= AFFORDABLE else "It did not work" if not clear else "It worked at a high price"
        natural = f" and {self.natural.rate.value:.0%} in natural text" if self.natural is not None and self.by_words else ""
        counted = "words" if self.by_words else "texts"
        return (
            f"{said}: {steered:.0%} of the {counted} name the concept, against {controls[0]:.0%} without steering, "
            f"{controls[1]:.0%} with a random push of equal length{natural}, "
            f"at {paid:.1f} times the perplexity of {self.relative_to}."
        )

    def sample(self, arm: Arm, prompt: int, mentions: Mentions) -> str:
        """The continuation with most mentions among an arm's `n_samples` of a prompt; with several controls, of the first."""
        start = prompt * self.n_samples
        return max(arm.texts[start : start + self.n_samples], key=lambda text: len(mentions.spans(text)))

    def best(self, cost: float) -> Point:
        """The cheapest point with at least 90 % of the largest share at a cost of at most `cost`; or else the cheapest."""
        affordable = [point for point in self.points if self.cost(point.steered) <= cost]
        if not affordable:
            return min(self.points, key=lambda point: self.cost(point.steered))
        enough = _ENOUGH * max(self.share(point.steered) for point in affordable)
        good = [point for point in affordable if self.share(point.steered) >= enough]
        return min(good, key=lambda point: self.cost(point.steered))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "prompts": self.prompts,
            "n_samples": self.n_samples,
            "natural": None if self.natural is None else {"perplexity": self.natural.perplexity, "rate": self.natural.rate.value},
            "perplexity_ratio_to": self.relative_to,
            "success": "words" if self.by_words else "texts",
            "baseline": self.baseline.to_dict(),
            "points": [
                {
                    "strength": str(point.strength),
                    **{
                        name: arm.to_dict() | {"lift": self.lift(arm), "perplexity_ratio": self.cost(arm)}
                        for name, arm in (("steered", point.steered), ("random", point.random))
                    },
                }
                for point in self.points
            ],
        }

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A table with one row per strength and arm: the rate of the concept, and the cost in perplexity."""
        rows = [
            {
                "strength": point["strength"],
                "arm": arm,
                "rate": f"{point[arm]['rate']:.2%}",
                "of baseline": f"{point[arm]['lift']:.3g}×",
                "perplexity": f"{point[arm]['perplexity_ratio']:.2f}×",
            }
            for point in data["points"]
            for arm in ("steered", "random")
        ]
        return Section("dose response", rows, [f"rate of the baseline: {data['baseline']['rate']:.2%}"])


def sweep(
    lm: LanguageModel,
    prompts: str | Sequence[str],
    change: Callable[[Strength], Intervention],
    strengths: Sequence[float],
    mentions: Mentions,
    *,
    unit: str = "norm",
    sampling: Sampling | None = None,
    natural: Sequence[str] = (),
) -> Sweep:
    """Sample continuations at several strengths with the same noise, and count the mentions of a concept.

    Args:
        lm: the model, with the dictionaries attached that `change` needs.
        prompts: one or more texts.
        change: returns the resolved intervention for a strength, which has one number for each prompt of a batch.
        strengths: the numbers, in the unit `unit`.
        mentions: finds the concept's words.
        unit: unit of the strengths.
        sampling: how to sample; the defaults of :class:`Sampling` unless given.
        natural: texts of the concept, about as long as the continuations, which the cost is relative to.

    Raises:
        ConfigError: there is no prompt or no strength.
        InterventionError: `change` or the strengths are refused as in :func:`saekit.evaluate.steering.compare.compare`.
    """
    prompts, strengths = [prompts] if isinstance(prompts, str) else list(prompts), list(strengths)
    if not prompts or not strengths:
        raise ConfigError("A sweep needs at least one prompt and one strength.")
    sampling = sampling or Sampling()
    # All strengths go in one batch: the time of a small model depends on the number of steps more than on the batch.
    repeated = [prompt for _ in strengths for prompt in prompts]
    intervention = change(Strength(tuple(value for value in strengths for _ in prompts), unit)).bind(lm)
    block = len(prompts) * sampling.n_samples

    def sampled(prompts: list[str], arms: Sequence[Any]) -> list[Arm]:
        made = lm.generate(
            prompts,
            interventions=arms,
            seed=sampling.seed,
            max_new_tokens=sampling.max_new_tokens,
            n_samples=sampling.n_samples,
            temperature=sampling.temperature,
            **_SAMPLING,
        )
        found = []
        for start in range(0, len(made.texts), block):
            some = slice(start, start + block)
            texts = made.texts[some]
            cost = perplexity(lm, made.prompt_tokens[some], continuations=made.tokens[some], batch_size=_BATCH).overall
            named = tuple(bool(mentions.spans(text)) for text in texts)
            found.append(Arm(texts, mentions.rate(texts), cost, perplexity_alone(lm, texts) if natural else None, named))
        return found

    (baseline,) = sampled(prompts, [])
    steered = sampled(repeated, [intervention])
    randoms = [sampled(repeated, [RandomControl(intervention, sampling.seed + i)]) for i in range(sampling.controls)]
    points = [
        Point(Strength(value, unit), arm, _pooled(parts)) for value, arm, *parts in zip(strengths, steered, *randoms, strict=True)
    ]
    known = Natural(perplexity_alone(lm, natural), mentions.rate(natural)) if natural else None
    return Sweep(prompts, sampling.n_samples, baseline, points, known)


def _pooled(arms: Sequence[Arm]) -> Arm:
    """Several directions as one arm; its perplexities are the geometric means of theirs."""
    texts = [text for arm in arms for text in arm.texts]
    alone = [arm.alone for arm in arms if arm.alone is not None]
    cost = _mean([arm.perplexity for arm in arms])
    named = tuple(each for arm in arms for each in arm.named)
    return Arm(texts, sum((arm.rate for arm in arms), Rate(0, 0)), cost, _mean(alone) if alone else None, named)


def _mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))
