"""What pages show of steering by one feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_db import FeatureRecord
    from saekit.evaluate.steering.dose_response import Arm, Sweep
    from saekit.evaluate.steering.mentions import Mentions

_PROMPTS = 4
_WORDS = 16


@dataclass(frozen=True)
class Steered:
    """What steering by one feature did.

    Attributes:
        record: the feature.
        scan: the strengths among which one was chosen.
        result: the chosen strength, measured on other prompts and with other noise than it was chosen on.
        vector: the same of the mean difference of activations between texts of the concept and others; None where there were too
            few such texts.
    """

    record: FeatureRecord
    scan: Sweep
    result: Sweep
    vector: Sweep | None = None

    def arms(self) -> dict[str, tuple[Sweep, Arm, str]]:
        """What is shown side by side, by name: where it was measured, the texts, and the strength."""
        (point,) = self.result.points
        found = {name: (self.result, arm, str(point.strength)) for name, arm in self.result.arms(point).items()}
        if self.vector is not None:
            (point,) = self.vector.points
            found["vector"] = self.vector, point.steered, str(point.strength)
        return found

    def verdicts(self) -> list[str]:
        """A sentence on the feature, and one on the vector."""
        measured = [("The feature", self.result), ("The mean difference", self.vector)]
        return [f"{name}: {sweep.verdict(sweep.points[0])}" for name, sweep in measured if sweep is not None]


def steering_view(steered: Steered, mentions: Mentions) -> dict[str, Any]:
    """One feature, steered.

    Args:
        mentions: the words by which the concept is counted.

    Returns:
        dictionary, site, name, feature, label: of the feature. strength: the chosen one, as text.
        words: of the concept; the first ones. more_words: whether there are others.
        samples: number of continuations of each prompt in each arm.
        relative_to: what costs are relative to.
        verdicts: a sentence that says whether it worked, of the feature and of the mean difference.
        arms: rows of `name`, `strength`, `rate` (mentions per word), `lift` (over the baseline, as text), `cost` (relative
            perplexity), `mentions` and `words`, and `texts` (share that mentions the concept).
        scan: `unit`, `strengths`, and `rates` and `costs` by arm, at strength 0 first.
        texts: for the first prompts, `prompt`, and for each arm its `name` and `pieces`: `text` and `named`, whether it names the
            concept. Every arm is shown by its sample with the most mentions.
    """
    result = steered.result
    (point,) = result.points
    return {
        "dictionary": steered.record.dictionary,
        "site": steered.record.site,
        "name": steered.record.name,
        "feature": steered.record.feature,
        "label": steered.record.label,
        "strength": str(point.strength),
        "words": list(mentions.words[:_WORDS]),
        "more_words": len(mentions.words) > _WORDS,
        "samples": result.n_samples,
        "relative_to": result.relative_to,
        "verdicts": steered.verdicts(),
        "arms": [_arm(*each[:2], name, each[2]) for name, each in steered.arms().items()],
        "scan": _scan(steered.scan),
        "texts": [
            {
                "prompt": prompt,
                "arms": [
                    {"name": name, "pieces": _marked(sweep.sample(arm, i, mentions), mentions)}
                    for name, (sweep, arm, _) in steered.arms().items()
                ],
            }
            for i, prompt in enumerate(result.prompts[:_PROMPTS])
        ],
    }


def _arm(result: Sweep, arm: Arm, name: str, strength: str) -> dict[str, Any]:
    rate = arm.rate
    numbers = {"rate": rate.value, "mentions": rate.hits, "words": rate.words, "texts": arm.of_texts, "cost": result.cost(arm)}
    return {"name": name, "strength": "" if name == "baseline" else strength, "lift": result.lift_text(arm), **numbers}


def _scan(scan: Sweep) -> dict[str, Any]:
    from saekit.evaluate.steering.dose_response import AFFORDABLE

    arms = {"feature": [point.steered for point in scan.points], "random": [point.random for point in scan.points]}
    return {
        "unit": scan.points[0].strength.unit,
        "strengths": [0.0, *(point.strength.values[0] for point in scan.points)],
        "rates": {name: [scan.baseline.rate.value, *(arm.rate.value for arm in own)] for name, own in arms.items()},
        "costs": {name: [scan.cost(scan.baseline), *(scan.cost(arm) for arm in own)] for name, own in arms.items()},
        "relative_to": scan.relative_to,
        "affordable": AFFORDABLE,
    }


def _marked(text: str, mentions: Mentions) -> list[dict[str, Any]]:
    """The text in pieces, cut where it names the concept."""
    found, end = [], 0
    for start, stop in mentions.spans(text):
        found += [{"text": text[end:start], "named": False}, {"text": text[start:stop], "named": True}]
        end = stop
    return [piece for piece in [*found, {"text": text[end:], "named": False}] if piece["text"]]
