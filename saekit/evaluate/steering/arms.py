"""Other ways to steer towards the same goal, for comparison at equal cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.errors import ConfigError, InterventionError
from saekit.evaluate.steering.frontier import Arm, Fixed, Prompting
from saekit.steer.amplitude import add
from saekit.steer.control import random_feature
from saekit.steer.intervention import BoundIntervention, Intervention
from saekit.steer.scaling import scaled
from saekit.steer.target import Vector

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Contrast

STEERED = "steered"


def random_arms(lm: LanguageModel, bound: BoundIntervention, seed: int) -> dict[str, Intervention]:
    """A push along a random direction, and along a random feature where there is a dictionary, at the first steered site.

    Args:
        bound: the steering. Its own features are not drawn.
        seed: of the draws.
    """
    if not bound.bound_edits:
        return {}
    site, generator = lm.site(bound.bound_edits[0].site), torch.Generator().manual_seed(seed)
    vectors = {"random_direction": torch.randn(lm.width(site), generator=generator)}
    if (feature := random_feature(lm, site, generator, bound)) is not None:
        vectors["random_feature"] = feature
    return {name: add(Vector(site, vector / vector.norm()), 1.0) for name, vector in vectors.items()}


def arms_beside(
    lm: LanguageModel,
    intervention: Intervention,
    *,
    contrast: Contrast | None = None,
    prompting: str | None = None,
    seed: int = 0,
) -> dict[str, Arm]:
    """A steering and what it is compared with, by name.

    Args:
        intervention: resolved, or with raw strengths.
        contrast: texts with and without the concept: the difference of their mean activations is added at the steered site.
        prompting: a text that is put before each prompt.
        seed: of the random controls.

    Raises:
        ConfigError: the steered site has no residual-wide activation that a mean difference could be added to.
    """
    bound = intervention.bind(lm)
    arms: dict[str, Arm] = {STEERED: intervention if _has_strength(intervention.resolve(lm)) else Fixed(intervention)}
    arms |= random_arms(lm, bound, seed)
    if contrast is not None:
        from saekit.steer.vectors import fit_vector

        if not bound.bound_edits:
            raise ConfigError("The steering changes no activation, so that there is no site for a mean difference.")
        site = lm.site(bound.bound_edits[0].site)
        values = fit_vector(lm, contrast, str(site), "diffmean").values
        arms["mean_difference"] = add(Vector(site, values / values.norm()), 1.0)
    if prompting:
        arms["prompting"] = Prompting(prompting)
    return arms


def _has_strength(intervention: Intervention) -> bool:
    try:
        scaled(intervention, 2.0)
    except InterventionError:
        return False
    return True
