"""Directions of the residual stream as changes: the layer and the strength are chosen on the half of the data for fitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saekit.evaluate.changed import Change
from saekit.improve.effects import on_neutral_text
from saekit.improve.target import Target
from saekit.improve.trial import Trial
from saekit.steer.vectors import SteeringVector, fit_vector
from saekit.tasks import Contrast

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Strengths that are tried, relative to the median length of the activations at the site."""


@dataclass(frozen=True)
class Addition:
    """A vector that is added, and how it was chosen.

    Attributes:
        vector: the direction, as it was fitted.
        strength: length of what is added, relative to the median length of the activations; negative where it is subtracted.
        change: the addition.
        tried: rows of site, strength, value on the data for fitting, and KL on neutral text.
    """

    vector: SteeringVector
    strength: float
    change: Change
    tried: list[dict[str, Any]]

    @property
    def site(self) -> str:
        """Where it is added."""
        return str(self.vector.site)

    @property
    def what(self) -> str:
        """The addition as a phrase."""
        return f"a vector added at {self.site}, {self.strength:+g} times as long as its activations"

    def random(self, seed: int) -> Addition:
        """A control: a random direction of the same length at the same place."""
        drawn = torch.randn(self.vector.values.shape, generator=torch.Generator().manual_seed(seed))
        facts = {"method": "random", "site_norm": self.vector.facts["site_norm"]}
        vector = SteeringVector(drawn / drawn.norm() * self.vector.norm, self.vector.site, facts)
        return Addition(vector, self.strength, addition(vector, self.strength), [])

    def times(self, factor: float) -> Addition:
        """The same vector with another strength."""
        strength = self.strength * factor
        return Addition(self.vector, strength, addition(self.vector, strength), self.tried)


def addition(vector: SteeringVector, strength: float) -> Change:
    """The change that adds a vector, `strength` times as long as the median activation where it was fitted."""
    return Change((vector.intervention(f"{strength * vector.facts['site_norm'] / vector.norm:g}raw"),))


def layers_tried(trial: Trial) -> list[str]:
    """Sites after the blocks in the middle of the model; one in quick mode."""
    n = trial.lm.n_layers
    middle = sorted({round((n - 1) * share) for share in (0.25, 0.5, 0.75)})
    return [f"resid_post.{layer}" for layer in (middle[1:2] if trial.quick else middle)]


def best_addition(
    trial: Trial,
    contrast: Contrast,
    target: Target,
    *,
    method: str = "diffmean",
    sign: int = 1,
    budget: float = 1.0,
    strengths: Sequence[float] = STRENGTHS,
    sites: Sequence[str] = (),
) -> Addition:
    """The vector of a contrast with the layer and strength that gain most on the data for fitting; if equal, with the least KL.

    Args:
        trial: the recipe's run.
        contrast: texts to fit the vector to.
        target: measured on data for fitting.
        method: a row of :data:`saekit.steer.vectors.FITS`.
        sign: -1 to subtract the vector.
        budget: largest mean KL on neutral text, in nats a token; where every strength exceeds it, the one with the least KL.
        strengths: those that are tried.
        sites: those that are tried; empty: after blocks in the middle of the model.
    """
    before = float(trial.measure(target).mean())
    found: list[tuple[tuple[bool, float, float], Addition]] = []
    tried: list[dict[str, Any]] = []
    for site in sites or layers_tried(trial):
        vector = fit_vector(trial.lm, contrast, site, method)
        for strength in strengths[1:2] if trial.quick else strengths:
            change = addition(vector, sign * strength)
            value = float(trial.measure(target, change).mean())
            kl = on_neutral_text(trial.lm, change, trial.neutral[:4])["kl"]
            tried.append({"site": site, "strength": sign * strength, "value": value, "kl": kl})
            score = (True, target.gain(before, value), -kl) if kl <= budget else (False, -kl, 0.0)
            found.append((score, Addition(vector, sign * strength, change, tried)))
    return max(found, key=lambda each: each[0])[1]
