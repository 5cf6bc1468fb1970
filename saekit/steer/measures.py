"""Measures on text that the units of strength refer to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm.run.batches import text_batches
from saekit.names.site import Site
from saekit.objects import Features, Space
from saekit.objects.patterns import PatternEntries, PatternRows
from saekit.steer.strength import FeatureStats
from saekit.steer.target import Target, place, read_together

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


SAMPLES = 1024
"""Most coefficients of a unit that are kept to draw from."""


class Measures(NamedTuple):
    """Statistics of single units, and the median activation norm of sites."""

    stats: dict[Target, FeatureStats]
    norms: dict[Site, float]


@torch.no_grad()
def measure(
    lm: LanguageModel,
    targets: Iterable[Target],
    sites: Iterable[Site | str],
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
) -> Measures:
    """Run the model on `texts`, or rows of token ids, and measure units and sites.

    Only ordinary tokens count (`lm.ordinary`): the activation of a BOS, or of another first token, is often tens of times longer
    than any other.

    Raises:
        InterventionError: the texts have no ordinary token.
    """
    places = {target: place(lm, target) for target in dict.fromkeys(targets)}
    if any(isinstance(space, PatternRows | PatternEntries) for space, _ in places.values()):
        raise InterventionError("Attention patterns have no measures on text.", "Give a raw strength.")
    wanted = {lm.site(site) for site in sites}
    read = sorted(wanted | {space.site for space, _ in places.values()})
    values: dict[Target, list[Tensor]] = defaultdict(list)
    norms: dict[Site, list[Tensor]] = defaultdict(list)
    if not read:
        return Measures({}, {})
    for tokens_BT, mask_BT in text_batches(lm, texts, batch_size):
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=read, logits=None).acts
        kept_BT = lm.ordinary(tokens_BT, mask_BT)
        rows = {site: act[kept_BT] for site, act in acts.items()}
        for site in wanted:
            norms[site].append(rows[site].float().flatten(1).norm(dim=1).cpu())
        for target, coefficients in read_together(places, rows).items():
            values[target].append(coefficients.cpu())
    if any(not sum(map(len, parts)) for parts in [*values.values(), *norms.values()]) or not (values or norms):
        raise InterventionError("The texts have no ordinary token to measure on.", "Give longer ones.")
    return Measures(
        {target: _stats(torch.cat(parts), places[target][0]) for target, parts in values.items()},
        {site: float(torch.cat(parts).median()) for site, parts in norms.items()},
    )


def _stats(values: Tensor, space: Space) -> FeatureStats:
    # The same tokens for all units, so that units which are resampled together keep what they have in common.
    drawn = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return replace(FeatureStats.measured(values, signed=_signed(space)), samples=values[drawn].double())


def _signed(space: Space) -> bool:
    """Whether the units of a space fire in two directions."""
    return isinstance(space, Features) and space.sae.cfg.activation_function.signed
