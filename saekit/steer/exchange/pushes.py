"""What an intervention adds to activations, as plain vectors: the part that formats of other tools can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.errors import InterventionError, NotExportable
from saekit.names.positions import TokenPositions
from saekit.names.site import Site
from saekit.steer.operations import OPERATIONS
from saekit.steer.target import place

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.change import Change
    from saekit.steer.intervention import Intervention


class Push(NamedTuple):
    """A vector that is added at a site.

    Attributes:
        site: where.
        values: (width,) float64; at sites with heads, the heads one after the other.
        positions: which tokens; None leaves it to the caller.
    """

    site: Site
    values: Tensor
    positions: TokenPositions | None


def pushes(lm: LanguageModel, intervention: Intervention, format: str) -> list[Push]:
    """The vectors that a resolved intervention adds, one for each site and choice of positions, in the order of sites.

    Raises:
        NotExportable: a change depends on the activation, or has a strength for each prompt.
        InterventionError: a strength is not resolved, or the changes cancel out.
    """
    sums: dict[tuple[Site, TokenPositions | None], Tensor] = {}
    for change in intervention.changes:
        site, values = _push(lm, change, format)
        key = site, None if change.positions is None else TokenPositions.parse(change.positions)
        sums[key] = sums[key] + values if key in sums else values
    found = [Push(site, values, positions) for (site, positions), values in sums.items() if values.any()]
    if not found:
        raise InterventionError("The intervention adds nothing.", "Give one with a strength.")
    return sorted(found, key=lambda push: (push.site, str(push.positions)))


def _push(lm: LanguageModel, change: Change, format: str) -> tuple[Site, Tensor]:
    """The site and the vector of one change."""
    if OPERATIONS[change.op].reads:
        raise NotExportable(
            f"{change.op} of {change.target} depends on the activation; {format} holds vectors that are added.",
            "Use the operation add, or the format hooks.",
        )
    if change.when or change.decay is not None:
        raise NotExportable(
            f"{change.op} of {change.target} has a condition or a schedule, which {format} cannot hold.", "Leave it out."
        )
    if change.amounts is None:
        raise InterventionError(f"The strength {change.strength} of {change.target} is not resolved.", "Resolve it first.")
    if len(change.amounts) != 1:
        raise NotExportable(f"{change.target} has a strength for each prompt; {format} has one for all.", "Give one strength.")
    space, unit = place(lm, change.target)
    site = space.site_out
    if site.kind == "pattern":
        raise NotExportable(f"{change.target} is added to a pattern, whose size changes with the context.", "Leave it out.")
    x = torch.randn(3, *lm.token_shape(site), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    added = (space.add(x, [unit], change.amounts[:, None]) - x).flatten(1)
    if not torch.allclose(added, added[:1], rtol=1e-6, atol=1e-9 * float(added.abs().max())):
        raise NotExportable(
            f"What {change.target} adds depends on the activation: its SAE scales its input.",
            f"{format} holds constant vectors. Fit a vector: `saekit vector fit`.",
        )
    return site, added.mean(0)


def everywhere(found: Iterable[Push], format: str) -> None:
    """Refuse pushes that are restricted to some tokens.

    Raises:
        NotExportable: one is.
    """
    for push in found:
        if push.positions is not None:
            raise NotExportable(
                f"The change at {push.site} is made at the positions {push.positions}; {format} acts at every token.",
                "Leave the positions out.",
            )


def by_block(lm: LanguageModel, found: Iterable[Push], format: str) -> dict[int, Tensor]:
    """The vectors by the number of the block to whose output they are added: (d_model,) float64.

    resid_post of a block is its output, resid_pre the output of the block before, and mlp_out the last term of it.

    Raises:
        NotExportable: a site is none of these, or precedes the first block.
    """
    blocks: dict[int, Tensor] = {}
    for push in found:
        layer, values = push.site.layer, push.values
        match push.site.kind:
            case "resid_post":
                pass
            case "resid_pre":
                layer = None if layer is None else layer - 1
            case "mlp_out":
                values = values * lm.scale(push.site)
            case _:
                layer = None
        if layer is None or layer < 0 or len(values) != lm.d_model:
            raise NotExportable(
                f"A vector at {push.site} is no change of a block's output, which is all that {format} has.",
                "Fit the vector at a resid_post, or choose the format hooks.",
            )
        blocks[layer] = blocks[layer] + values if layer in blocks else values
    return dict(sorted(blocks.items()))
