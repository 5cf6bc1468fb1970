"""What the steering bench shows of a run: the measures of its arms, and a sweep over strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.lm import Generation, LanguageModel
    from saekit.steer.intervention import Intervention

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""What a sweep multiplies every strength by."""
_SAMPLES = 4
NEUTRAL_TOKENS = 1024
"""Tokens of the corpus on which a sweep measures the KL."""


def measures_view(lm: LanguageModel, made: Mapping[str, Generation], arms: Mapping[str, Any]) -> dict[str, Any]:
    """What steering did to one generation.

    Args:
        made: what was generated in each of :data:`saekit.views.bench.ARMS`.
        arms: the intervention of each; None for the baseline. `steered` is bound.

    Returns:
        arms: for each arm `perplexity`, `kl` (to the unsteered model, in nats a token; 0 for the baseline), `distinct_2` and
            `ngram_entropy` (None where the text is too short), and `tokens`: rows of
            :meth:`saekit.evaluate.steering.token_differences.TokenDifference.to_dict` under that arm's intervention, for the
            baseline under the steered one.
        fired: of each feature, at how many steered positions it fires by itself.
        warnings: sentences on degenerate text.
    """
    from saekit.evaluate.steering.compare import compared
    from saekit.evaluate.steering.degenerate import warnings_of
    from saekit.evaluate.steering.token_differences import token_differences

    found = compared(lm, made, arms).to_dict()
    divergence = {"baseline": 0.0, "steered": found["kl"], "random": found.get("random_kl")}
    shown = {}
    for name, one in made.items():
        under = arms["steered"] if arms[name] is None else arms[name]
        tokens = token_differences(lm, under, one.prompt_tokens[0], one.tokens[0])
        shown[name] = {
            "perplexity": _finite(found["perplexity"][name]),
            "kl": _finite(divergence[name]),
            **found["repetition"][name],
            "tokens": [each.to_dict() for each in tokens],
        }
    return {"arms": shown, "fired": found["fired"], "warnings": warnings_of([one.texts[0] for one in made.values()][1:2])}


def sweep_view(
    lm: LanguageModel,
    intervention: Intervention,
    prompts: Sequence[str],
    words: Sequence[str],
    neutral: Sequence[Sequence[int]],
    *,
    max_tokens: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """The target and the cost at several multiples of the strengths.

    Args:
        intervention: resolved; its strengths are multiplied by :data:`FACTORS`.
        prompts: what is continued.
        words: the target: words whose share in the continuations is counted.
        neutral: texts as rows of token ids, on which the KL is measured.

    Returns:
        baseline: `rate`. points: rows of `factor`, `rate`, `random_rate`, `perplexity` (relative to unsteered text),
        `random_perplexity`, `kl` (nats a token on neutral text), `sample`, and `frontier`: whether no other strength has more of
        the target at less cost. words, samples, n_tokens: what was counted.

    Raises:
        ConfigError: there is no word.
        InterventionError: a change has no strength that can vary.
    """
    from saekit.evaluate.steering.dose_response import Sampling, sweep
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.evaluate.steering.side_effects import token_effects
    from saekit.steer.scaling import scaled

    if not any(word.strip() for word in words):
        raise ConfigError("A sweep needs the words that it counts.", "Write some, with commas: cake, ice cream.")
    mentions = Mentions(words)
    sampling = Sampling(n_samples=_SAMPLES, max_new_tokens=max_tokens, seed=seed)
    found = sweep(
        lm, prompts, lambda strength: scaled(intervention, strength.values), FACTORS, mentions, unit="raw", sampling=sampling
    )
    rows: list[dict[str, Any]] = []
    for factor, point in zip(FACTORS, found.points, strict=True):
        cost = token_effects(lm, scaled(intervention, factor).bind(lm), neutral)
        rows.append(
            {
                "factor": factor,
                "rate": point.steered.rate.value,
                "random_rate": point.random.rate.value,
                "perplexity": _finite(found.cost(point.steered)),
                "random_perplexity": _finite(found.cost(point.random)),
                "kl": float(cost.kl.mean()),
                "sample": found.sample(point.steered, 0, mentions),
            }
        )
    front = best_at_their_cost([(row["kl"], row["rate"]) for row in rows])
    rows = [{**row, "frontier": each} for row, each in zip(rows, front, strict=True)]
    return {
        "words": list(mentions.words),
        "baseline": {"rate": found.baseline.rate.value},
        "points": rows,
        "samples": _SAMPLES * len(prompts),
        "n_tokens": sum(map(len, neutral)),
    }


def best_at_their_cost(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, gain), whether no other point gains as much or more at that cost or less (the Pareto front)."""
    return [
        not any(cost <= own_cost and gain >= own and (cost, gain) != (own_cost, own) for cost, gain in points)
        for own_cost, own in points
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
