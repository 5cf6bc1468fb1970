"""Generations with and without an intervention, side by side, and the side effects of the intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from saekit import notebook
from saekit.evaluate.report import Report, Section
from saekit.evaluate.steering.firing import Firing, firings
from saekit.evaluate.steering.side_effects import distinct_n, kl, ngram_entropy, perplexity
from saekit.steer.control import RandomControl
from saekit.steer.intervention import BoundIntervention, Intervention, combine

if TYPE_CHECKING:
    from saekit.lm import Generation, LanguageModel, Positions


@dataclass(frozen=True)
class Comparison(Report):
    """Result of :func:`compare`; continuations are listed n_samples for each prompt, side by side."""

    name: ClassVar[str] = "compare"
    prompts: list[str]
    baseline: list[str]
    steered: list[str]
    random: list[str] | None
    """Continuations with a random push of the same norm at the same tokens; None without a control."""
    kl: float
    """KL divergence in nats per token of the steered from the unsteered model, on the unsteered continuations."""
    random_kl: float | None
    perplexity: dict[str, float]
    """Perplexity under the unsteered model of the baseline, the steered and, with a control, the random continuations."""
    repetition: dict[str, dict[str, float]]
    """For each of these, distinct_2 (1: no bigram occurs twice) and ngram_entropy (bits); NaN where every continuation is too
    short."""
    intervention: Intervention
    """Resolved: with its amounts."""
    firings: tuple[Firing, ...] = ()
    """For each feature, at how many of the steered positions it fires in the unsteered continuations."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values: null for a measure that is NaN; without a control, its values are left out."""
        data = {
            "prompts": self.prompts,
            "baseline": self.baseline,
            "steered": self.steered,
            "random": self.random,
            "kl": self.kl,
            "random_kl": self.random_kl,
            "perplexity": self.perplexity,
            "repetition": {
                name: {key: None if isnan(value) else value for key, value in found.items()}
                for name, found in self.repetition.items()
            },
            "fired": [each.to_dict() for each in self.firings],
            "intervention": self.intervention.to_dict(),
        }
        return {key: value for key, value in data.items() if value is not None}

    def _repr_html_(self) -> str:
        """The continuations side by side and the side effects, for notebooks."""
        arms = {"baseline": self.baseline, "steered": self.steered, **({} if self.random is None else {"random": self.random})}
        rows = [
            {"prompt": prompt, **{arm: notebook.shortened(texts[i]) for arm, texts in arms.items()}}
            for i, prompt in enumerate(self.prompts)
        ]
        section = self.section_of(self.to_dict())
        effects = notebook.table(section.rows, caption=section.title)
        return notebook.block(notebook.table(rows), effects, *(notebook.line(notebook.quiet(said)) for said in section.summary))

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """An arm a row: its perplexity, its repetition, and its divergence from the unsteered model."""
        divergence = {"baseline": 0.0, "steered": data["kl"], "random": data.get("random_kl")}
        rows = [
            {
                "arm": arm,
                "perplexity": value,
                "KL": "–" if divergence.get(arm) is None else f"{divergence[arm]:.4g}",
                **{name: "–" if each is None else f"{each:.3f}" for name, each in data["repetition"][arm].items()},
            }
            for arm, value in data["perplexity"].items()
        ]
        return Section("side effects", rows, ["KL in nats per token; perplexity under the unsteered model"])


def compare(
    lm: LanguageModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    intervention: Intervention | BoundIntervention | Sequence[Intervention],
    *,
    seed: int = 0,
    max_new_tokens: int = 64,
    n_samples: int = 1,
    do_sample: bool | None = None,
    control: bool | Literal["direction", "feature"] = True,
    positions: Positions | None = None,
    decoding: Sequence[Any] = (),
    **hf_kwargs: Any,
) -> Comparison:
    """Generate without and with an intervention on the same seed, and as a control with a random push of the same norm.

    Args:
        lm: the model, with the SAEs attached that the intervention needs.
        prompts: one or more texts, or rows of token ids.
        intervention: an intervention that is resolved or has raw strengths; several are applied together.
        seed: seed of the sampling and of the control's direction.
        control: whether to make the control. "direction" (also True) pushes along a random direction, "feature" along that of a
            random feature.
        positions: tokens steered by changes that name none. None is "last+generated", and all tokens for ablations.
        decoding: changes of logits, such as :class:`saekit.steer.decode.DoLa`, in all continuations but the baseline. The KL
            divergence leaves them out, because they exclude tokens.
        hf_kwargs: as for `lm.generate`.

    Raises:
        InterventionError: a strength lacks its measure, or changes conflict.
        UnknownRef: the model has no such object.
    """
    bound = intervention if isinstance(intervention, BoundIntervention) else combine(intervention).bind(lm)
    arms: dict[str, Any] = {"baseline": None, "steered": bound}
    if control:
        arms["random"] = RandomControl(bound, seed, control if isinstance(control, str) else "direction")
    made: dict[str, Generation] = {
        name: lm.generate(
            prompts,
            interventions=[] if arm is None else [arm, *decoding],
            positions=positions,
            seed=seed,
            max_new_tokens=max_new_tokens,
            n_samples=n_samples,
            do_sample=do_sample,
            **hf_kwargs,
        )
        for name, arm in arms.items()
    }
    return compared(lm, made, arms, positions=positions, n_samples=n_samples)


def compared(
    lm: LanguageModel,
    made: Mapping[str, Generation],
    arms: Mapping[str, Any],
    *,
    positions: Positions | None = None,
    n_samples: int = 1,
) -> Comparison:
    """Measure what was generated under each condition.

    Args:
        lm: the model.
        made: the continuations of `baseline`, `steered` and, with a control, `random`.
        arms: the intervention of each; None for the baseline. `steered` is bound to the model.
        positions: as they were given to `lm.generate`.
        n_samples: continuations of each prompt.
    """
    base, bound = made["baseline"], arms["steered"]
    prompt_of = [n // n_samples for n in range(len(base.prompts))]
    kls = {
        name: kl(lm, arm, base.prompt_tokens, continuations=base.tokens, positions=positions, prompt_of_text=prompt_of)
        for name, arm in arms.items()
        if arm is not None
    }
    fired = firings(lm, bound, base.prompt_tokens, base.tokens, positions=positions)
    return Comparison(
        prompts=base.prompts,
        baseline=base.texts,
        steered=made["steered"].texts,
        random=made["random"].texts if "random" in made else None,
        kl=kls["steered"],
        random_kl=kls.get("random"),
        perplexity={name: perplexity(lm, one.prompt_tokens, continuations=one.tokens).overall for name, one in made.items()},
        repetition={
            name: {"distinct_2": distinct_n(one.tokens, 2), "ngram_entropy": ngram_entropy(one.tokens)}
            for name, one in made.items()
        },
        intervention=bound.intervention,
        firings=tuple(fired),
    )
