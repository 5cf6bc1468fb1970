"""The mean difference of activations: the direction that tells texts of a concept from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import CorpusError
from saekit.lm.run.batches import text_batches
from saekit.names.site import Site
from saekit.steer.target import Vector

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
    return Vector(place, _mean(lm, place, positive, batch_size) - _mean(lm, place, negative, batch_size))


@torch.no_grad()
def _mean(lm: LanguageModel, site: Site, texts: Sequence[str], batch_size: int) -> Tensor:
    total, count = torch.zeros((), dtype=torch.double), 0
    for tokens_BT, mask_BT in text_batches(lm, texts, batch_size):
        tokens_BT, mask_BT = tokens_BT.to(lm.device), mask_BT.to(lm.device)
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site]
        rows = acts[lm.ordinary(tokens_BT, mask_BT).to(acts.device)].flatten(1).double()
        total, count = total + rows.sum(0).cpu(), count + len(rows)
    if not count:
        raise CorpusError("A side of a contrast has no ordinary token.", "Give texts of at least two tokens.")
    return (total / count).float()
