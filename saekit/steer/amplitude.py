"""Amplitude manipulation: ablate, set, scale, add to or copy the coefficients of units.

For a coefficient a: zero ablation a := 0, mean ablation a := E[a], clamp a := c, scaling a := c a, addition a := a + c,
patching a := a of another run. Changing feature j of an SAE adds (a' - a) W_dec[j] to the activation x; the SAE's reconstruction
error stays part of x.

Targets are refs (or their text), vectors, or lists of these. Strengths are numbers (raw), texts ('0.5norm', '2max', 'q.99'), or
lists of these with one for each prompt of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm.run.batches import text_rows
from saekit.objects import Ref
from saekit.steer.change import Change
from saekit.steer.intervention import Intervention
from saekit.steer.operations import OPERATIONS, named
from saekit.steer.strength import Strength
from saekit.steer.target import Target, Vector, place, read_together

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions

Targets = Target | str | Iterable[Target | str]
AnyStrength = Strength | float | str | Tensor | Sequence[float | str]


def clamp(
    targets: Targets, strength: AnyStrength, *, along: Tensor | None = None, positions: Positions | None = None
) -> Intervention:
    """Set coefficients to `strength`; the coefficient of a head, which is a vector, to `strength` times the vector `along`."""
    return _each("clamp", targets, Strength.of(strength), positions, along)


def add(
    targets: Targets, strength: AnyStrength, *, along: Tensor | None = None, positions: Positions | None = None
) -> Intervention:
    """Add to coefficients: a constant push along the direction of each unit, whatever its own coefficient is."""
    return _each("add", targets, Strength.of(strength), positions, along)


def scale(targets: Targets, factor: AnyStrength, *, positions: Positions | None = None) -> Intervention:
    """Multiply coefficients by a factor; that of a head, which is a vector, as a whole."""
    return _each("scale", targets, Strength.of(factor), positions)


def ablate(targets: Targets, to: Literal["zero", "mean"] = "zero", *, positions: Positions | None = None) -> Intervention:
    """Set coefficients to 0, or to their mean over a corpus, which `resolve` then needs.

    Without `positions`, `lm.generate` ablates at all tokens, not only at the last and the generated ones.
    """
    if to not in ("zero", "mean"):
        raise InterventionError(f"There is no ablation to {to!r:.40}.", "Ablate to 'zero' or to 'mean'.")
    return _each("ablate", targets, Strength(1.0, "mean") if to == "mean" else Strength(0.0), positions)


@torch.no_grad()
def patch(
    lm: LanguageModel, targets: Targets, source: str | Sequence[int], *, positions: Positions | None = None
) -> Intervention:
    """Set coefficients at each position to their values at the same position of another text.

    Args:
        lm: the model.
        targets: the units.
        source: the other text, or its token ids.
        positions: unless given, the positions of the ordinary tokens of `source` (`lm.ordinary`).
    """
    listed = _listed(targets)
    (row,) = text_rows(lm, [source])  # type: ignore[arg-type]
    places = {target: place(lm, target) for target in listed}
    acts = lm.run([row], read={space.site for space, _ in places.values()}, logits=None).acts
    if positions is None:
        positions = lm.ordinary(torch.tensor(row)).nonzero().flatten().tolist()
    values = read_together(places, {site: act[0] for site, act in acts.items()})
    return Intervention(tuple(Change("patch", target, Strength(1.0), positions, amounts=values[target]) for target in listed))


def intervene(
    op: str, targets: Targets, strength: AnyStrength | None = None, *, positions: Positions | None = None
) -> Intervention:
    """An intervention by the name of its operation, one of :func:`saekit.steer.operations.named`.

    Without a strength, clamp and add take :data:`saekit.steer.strength.DEFAULT`. Scale needs a factor; ablate takes no strength.

    Raises:
        ConfigError: there is no such operation; the message names the nearest.
        InterventionError: the strength is missing, or the operation does not take one.
    """
    operation = OPERATIONS.find(op)
    if not operation.named:
        raise InterventionError(f"{op} cannot be made from a name and a strength.", f"Choose one of {', '.join(named())}.")
    if strength is None:
        strength = operation.strength
        if strength is None:
            raise InterventionError(f"{op} needs a factor.", "Write it after the feature, like 1042:0.5.")
    elif operation.fixed:
        raise InterventionError(f"{op} takes no strength, and {strength} is given.", "To set a value, use clamp.")
    return _each(op, targets, Strength.of(strength), positions)


def _listed(targets: Targets) -> list[Target]:
    several = [targets] if isinstance(targets, (str, Ref, Vector)) else targets
    return [Ref.parse(target) if isinstance(target, str) else target for target in several]


def _each(
    op: str, targets: Targets, strength: Strength, positions: Positions | None, along: Tensor | None = None
) -> Intervention:
    return Intervention(tuple(Change(op, target, strength, positions, along) for target in _listed(targets)))
