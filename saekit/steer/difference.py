"""The mean difference of activations: the direction that tells texts of a concept from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saekit.names.site import Site
from saekit.steer.target import Vector
from saekit.steer.vectors.data import FitData
from saekit.steer.vectors.diff_mean import diff_mean

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def mean_difference(
    lm: LanguageModel, site: Site | str, positive: Sequence[str], negative: Sequence[str], *, batch_size: int = 16
) -> Vector:
    """Mean activation on texts of a concept minus the mean on other texts, as a direction at `site`.

    v = mu+ - mu-, over all ordinary tokens (:meth:`LanguageModel.ordinary`): DiffMean (Marks and Tegmark 2023), also known as
    contrastive activation addition where the texts come in pairs (Rimsky et al. 2023).

    Args:
        lm: the model.
        site: where activations are read, and where the direction is to be added.
        positive, negative: texts, or rows of token ids, with and without the concept.
        batch_size: texts run at a time; it makes no difference to the result but for rounding.

    Raises:
        CorpusError: one side has no ordinary token.
        InterventionError: the means are equal.
    """
    place = lm.site(site)
    return Vector(place, diff_mean(FitData(lm, place, positive, negative, batch_size=batch_size)))
