"""Targets of changes: objects named by refs, and directions given as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.site import Site
from saekit.objects import Directions, Ref, Space, space_of
from saekit.objects.patterns import PatternEntries, PatternRows

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@dataclass(frozen=True, eq=False)
class Vector:
    """A direction at a site given as numbers: (width,), float32; at sites with heads, the heads one after the other.

    Raises:
        InterventionError: the direction is zero or not finite.
    """

    site: Site
    values: Tensor

    def __post_init__(self) -> None:
        values = self.values.detach().cpu().float().flatten()
        if not values.isfinite().all() or not values.any():
            raise InterventionError(f"The direction at {self.site} is zero or not finite.", "Give one with a length.")
        object.__setattr__(self, "site", Site.parse(self.site))
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        return f"direction at {self.site}"


Target = Ref | Vector


def place(lm: LanguageModel, target: Target, *, onto: bool = False) -> tuple[Space, int]:
    """The space that a target belongs to, and the target's number in it. A vector has a space of its own.

    Args:
        onto: take the direction that the object writes, instead of the object.

    Raises:
        UnknownRef, UnknownSite: the model has no such object or site.
        InterventionError: the object has no direction.
    """
    if isinstance(target, Ref):
        space = space_of(lm, target)
        if onto:
            return direction(lm, target, space), 0
        if target.kind == "pattern":
            rows = PatternRows(space.site, space.n_units)
            return rows if target.key is None else PatternEntries(rows), rows.unit_of(target.unit, target.key)
        return space, target.unit
    site = lm.site(target.site)
    return Directions(site, target.values[None], lm.token_shape(site)), 0


def direction(lm: LanguageModel, ref: Ref, space: Space | None = None) -> Directions:
    """The vector that an object with a number for a coefficient adds to the activation at its site, as a space of one direction.

    Raises:
        UnknownRef: the model has no such object.
        InterventionError: its coefficient is a vector.
    """
    space = space or space_of(lm, ref)
    if space.unit_shape:
        raise InterventionError(f"{ref} writes a whole vector, not one direction.", "Ablate it instead.")
    site = space.site_out
    return Directions(site, space.vectors([ref.unit]).detach(), lm.token_shape(site))


def read_together(places: Mapping[Target, tuple[Space, int]], rows: Mapping[Site, Tensor]) -> dict[Target, Tensor]:
    """Coefficients (N, *unit_shape) of every target, each space read once.

    Args:
        places: the space and number of each target.
        rows: activations (N, *token_shape) by site.
    """
    groups: dict[object, list[Target]] = defaultdict(list)
    for target in places:
        groups[places[target][0].key if isinstance(target, Ref) else target].append(target)
    found: dict[Target, Tensor] = {}
    for members in groups.values():
        space, _ = places[members[0]]
        values = space.read(rows[space.site], [places[target][1] for target in members])
        found.update({target: values[:, i] for i, target in enumerate(members)})
    return found
