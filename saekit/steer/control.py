"""A control for steering: a push of the same length, at the same tokens, in a random direction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.site import Site
from saekit.objects import Ref, sae_at
from saekit.steer.intervention import BoundIntervention, Intervention
from saekit.steer.readers import Reader

if TYPE_CHECKING:
    from saekit.lm import At, Edit, LanguageModel


@dataclass(frozen=True)
class RandomControl:
    """At each token, replaces the intervention's change d of the activation by |d| r, where r is one random unit vector per edit.

    d is computed at each token from the activation there, so that the norms match exactly whatever the operation. Use it
    wherever an intervention goes.

    Raises:
        InterventionError: `along` is neither "direction" nor "feature".
    """

    intervention: Intervention | BoundIntervention
    seed: int = 0
    along: Literal["direction", "feature"] = "direction"
    """"direction": r is uniform on the sphere. "feature": r is the direction of a random feature of the SAE attached there."""

    def __post_init__(self) -> None:
        if self.along not in ("direction", "feature"):
            raise InterventionError(f"There is no control along {self.along!r:.40}.", "Choose 'direction' or 'feature'.")

    def edits(self, lm: LanguageModel) -> list[Edit]:
        """The edits that `run` and `generate` apply.

        Raises:
            InterventionError: `along` is "feature" and a site has no SAE.
        """
        edits = self.intervention.edits(lm)
        return [
            edit if isinstance(edit.fn, Reader) else replace(edit, fn=_Push(edit, self._direction(lm, lm.site(edit.site), i)))
            for i, edit in enumerate(edits)
        ]

    def _direction(self, lm: LanguageModel, site: Site, number: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{site}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if self.along == "direction":
            vector = torch.randn(lm.width(site), generator=generator)
            return vector / vector.norm()
        feature = random_feature(lm, site, generator, self.intervention)
        if feature is None:
            raise InterventionError(f"There are no features at {site} to draw one from.", "Use along='direction'.")
        return feature


def random_feature(
    lm: LanguageModel, site: Site, generator: torch.Generator, steered: Intervention | BoundIntervention
) -> Tensor | None:
    """The direction (width,) of length 1 of a random live feature that writes at a site; None where there is none.

    Features that `steered` changes are not drawn: they are what the control is compared with.
    """
    changes = steered.intervention.changes if isinstance(steered, BoundIntervention) else steered.changes
    for address, sae in lm.attached.items():
        if site != sae.writes_at(address.site):
            continue
        rows = sae.feature_vectors().detach().cpu().float()
        free = rows.norm(dim=1) > 0
        for ref in (change.target for change in changes if isinstance(change.target, Ref)):
            if ref.kind == "feature" and sae_at({address: sae}, ref.address) is sae:
                free[ref.unit] = False
        alive = rows[free]
        if len(alive):
            vector = alive[int(torch.randint(len(alive), (), generator=generator))]
            return vector / vector.norm()
    return None


@dataclass(frozen=True)
class _Push:
    edit: Edit
    direction: Tensor

    def __call__(self, rows: Tensor, at: At) -> Tensor:
        length_N = (self.edit.fn(rows, at) - rows).flatten(1).norm(dim=1)
        push = length_N[:, None] * self.direction.to(rows)
        return rows + push.view_as(rows)
