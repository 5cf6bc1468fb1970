"""Results of probing: scores of probes on latents, on coordinates and on whole activations, and absorption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from saekit.evaluate.dictionary.absorption import Absorption
from saekit.evaluate.report import Report, Section, decimals, too_few


class Score(NamedTuple):
    """Scores of a probe on test examples. Half of these have the concept, so that a probe without information has an accuracy, an
    AUC and an average precision of .5."""

    accuracy: float
    auc: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class Probe:
    """One concept.

    Attributes:
        train, test: number of examples; half of them have the concept.
        dense: logistic regression on the whole activation.
        sparse: logistic regression on k latents, by k.
        coordinates: logistic regression on k coordinates of the activation, by k. This baseline needs no dictionary.
        latents: the latents for the largest k, best first; smaller k use the first k of them.
        absorption: None for texts, for transcoders, and if the accuracy of the dense probe is below .8.
    """

    concept: str
    train: int
    test: int
    dense: Score
    sparse: dict[int, Score]
    coordinates: dict[int, Score]
    latents: tuple[int, ...]
    absorption: Absorption | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        scores = {
            name: {str(k): score._asdict() for k, score in getattr(self, name).items()} for name in ("sparse", "coordinates")
        }
        return asdict(self) | {"dense": self.dense._asdict()} | scores


@dataclass(frozen=True)
class Probes(Report):
    """The probes of all concepts, sorted by how well one latent detects the concept, best first.

    Attributes:
        site: where the dictionary reads.
        found: one probe for each concept.
        missing: concepts with fewer examples than can be judged.
        examples: number of examples.
    """

    name: ClassVar[str] = "probe"
    site: str
    found: tuple[Probe, ...]
    missing: tuple[str, ...]
    examples: int

    def means(self) -> dict[str, Any]:
        """Means over the concepts.

        Returns:
            concepts: their number. dense: scores of the dense probe. sparse, coordinates: scores by k.
            absorption: `main` (number of latents), `fraction`, `full`, and `concepts` (for how many it was measured).
        """
        absorbed = [each.absorption for each in self.found if each.absorption is not None]
        ks = list(self.found[0].sparse) if self.found else []
        facts: dict[str, Any] = {
            "concepts": len(self.found),
            "dense": _mean([each.dense for each in self.found]),
            "sparse": {k: _mean([each.sparse[k] for each in self.found]) for k in ks},
            "coordinates": {k: _mean([each.coordinates[k] for each in self.found]) for k in ks},
        }
        if absorbed:
            facts["absorption"] = {
                "concepts": len(absorbed),
                "main": float(np.mean([len(each.main) for each in absorbed])),
                "fraction": float(np.mean([each.fraction for each in absorbed])),
                "full": float(np.mean([each.full for each in absorbed])),
            }
        return facts

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        concepts, means = [each.to_dict() for each in self.found], self.means()
        means |= {name: {str(k): score for k, score in means[name].items()} for name in ("sparse", "coordinates")}
        facts = {"site": self.site, "examples": self.examples, "means": means}
        return facts | {"concepts": concepts, "missing": list(self.missing)}

    @staticmethod
    def section_of(data: Mapping[str, Any]) -> Section:
        """A table with one row per concept (accuracies, latents, absorption), and sentences with the means over concepts."""
        means, at = data["means"], data.get("site")
        dense = _score_text(means["dense"])
        lines = [
            f"{means['concepts']} concepts on {data['examples']:,} examples: mean accuracy (AUC, AP) of a dense probe {dense}"
        ]
        for k, score in means["sparse"].items():
            latents, own = f"{k} latent{'s' * (k != '1')}", f"{k} coordinate{'s' * (k != '1')} of the activation"
            lines.append(f"{latents} {_score_text(score)}; {own} {_score_text(means['coordinates'][k])}")
        if "absorption" in means:
            absorption = means["absorption"]
            lines.append(
                f"absorption, of {absorption['concepts']} concepts that the dense probe knows: {absorption['main']:.1f} latents "
                f"of their own, {absorption['fraction']:.1%} absorbed by others, {absorption['full']:.1%} of tokens in full"
            )
        lines.append("AP: average precision. Half of the examples have the concept: a probe that says nothing has 50 % (.5, .5)")
        lines += too_few(data["missing"], "examples")
        return Section(f"probes at {at}" if at else "probes", [_row(each) for each in data["concepts"]], lines)


def _row(concept: Mapping[str, Any]) -> dict[str, Any]:
    absorption = concept["absorption"] or {}
    first = min(concept["sparse"], key=int)

    def percent(name: str) -> str:
        return f"{absorption[name]:.1%}" if absorption else ""

    return {
        "concept": concept["concept"],
        "dense": f"{concept['dense']['accuracy']:.1%}",
        **{f"k = {k}": f"{score['accuracy']:.1%}" for k, score in concept["sparse"].items()},
        f"AUC, k = {first}": decimals(concept["sparse"][first]["auc"]),
        f"AP, k = {first}": decimals(concept["sparse"][first].get("average_precision")),
        "latents": " ".join(map(str, concept["latents"])),
        "own": str(len(absorption["main"])) if absorption else "",
        "absorbed": percent("fraction"),
        "in full": percent("full"),
        "by": "" if absorption.get("absorber") is None else f"#{absorption['absorber']}",
    }


def _score_text(score: Mapping[str, float]) -> str:
    return f"{score['accuracy']:.1%} ({decimals(score['auc'])}, {decimals(score.get('average_precision'))})"


def _mean(scores: Sequence[Score]) -> dict[str, float]:
    return {name: float(np.mean([getattr(each, name) for each in scores])) if scores else float("nan") for name in Score._fields}
