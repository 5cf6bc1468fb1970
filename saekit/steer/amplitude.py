"""Amplitude manipulation: ablate, set, scale, add to or copy the coefficients of units.

For a coefficient a: zero ablation a := 0, mean ablation a := E[a], clamp a := c, scaling a := c a, addition a := a + c,
patching a := a of another run, resample ablation a := a of a random token of other text, cap a := min(a, c), floor
a := max(a, c). Changing feature j of an SAE adds (a' - a) W_dec[j] to the activation x; the SAE's reconstruction
error stays part of x.

Targets are refs (or their text), vectors, lists of these, or rankings: `ablate(ranking.top(5))`. A ref with a position, such as
`head:3.5[7]`, is changed there alone. Strengths are numbers (raw), texts ('0.5norm', '2max', 'q.99'), or
lists of these with one for each prompt of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.lm.run.batches import text_rows
from saekit.names.edge import Edge, parse_object
from saekit.objects import Ref
from saekit.steer.change import Change
from saekit.steer.condition import Condition
from saekit.steer.intervention import Intervention, combine
from saekit.steer.operations import OPERATIONS, named
from saekit.steer.strength import Strength
from saekit.steer.target import Target, Vector, place, read_together

if TYPE_CHECKING:
    from saekit.lm import LanguageModel, Positions

Targets = Target | str | Iterable[Target | Edge | str]
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


def cap(targets: Targets, at_most: AnyStrength, *, positions: Positions | None = None) -> Intervention:
    """Set coefficients above `at_most` to it: the projection onto the half-space below; a head is shortened to that length."""
    return _each("cap", targets, Strength.of(at_most), positions)


def floor(targets: Targets, at_least: AnyStrength, *, positions: Positions | None = None) -> Intervention:
    """Set coefficients below `at_least` to it; a head is lengthened to that length."""
    return _each("floor", targets, Strength.of(at_least), positions)


def project_out(targets: Targets, *, positions: Positions | None = None) -> Intervention:
    """Remove from the activation x its part along the directions that units write, x - V V^+ x, whether the units fire or not.

    Without `positions`, `lm.generate` does so at all tokens.
    """
    return _each("project-out", targets, Strength(0.0), positions)


def resample(
    lm: LanguageModel, targets: Targets, texts: Sequence[str], *, seed: int = 0, positions: Positions | None = None
) -> Intervention:
    """Set coefficients to their values at random ordinary tokens of `texts`: resample ablation, which leaves typical values.

    At a token, all units that are changed get their values from one token of `texts`, if they were measured together. The draw
    depends on the seed, the number of the prompt and the position alone.

    Raises:
        InterventionError: the texts have no ordinary token.
    """
    return _each("resample", targets, Strength(float(seed)), positions).resolve(lm, texts=texts)


def for_prompts(interventions: Sequence[Intervention | None]) -> Intervention:
    """One intervention for a batch: the k-th of `interventions` in the k-th prompt alone; None leaves a prompt as it is."""
    return combine(each.where(Condition("prompt", "==", number)) for number, each in enumerate(interventions) if each is not None)


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
    rows = {site: act[0].transpose(0, 1) if site.kind == "pattern" else act[0] for site, act in acts.items()}  # by query
    values = read_together(places, rows)
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
            what = "a factor" if operation.factor else "a strength"
            raise InterventionError(f"{op} needs {what}.", "Write it after the object, like 1042:0.5.")
    elif operation.fixed:
        raise InterventionError(f"{op} takes no strength, and {strength} is given.", "To set a value, use clamp.")
    return _each(op, targets, Strength.of(strength), positions)


def _listed(targets: Targets) -> list[Target]:
    several = [targets] if isinstance(targets, (str, Ref, Vector)) else targets
    return [_target(target) for target in several]


def _target(target: Target | Edge | str) -> Target:
    """One target; a text is parsed."""
    named = parse_object(target) if isinstance(target, str) else target
    if isinstance(named, Edge):
        raise InterventionError(f"{named} is an edge; only its ends have coefficients.", "Give the objects at its ends.")
    return named


def _placed(target: Target, positions: Positions | None) -> tuple[Target, Positions | None]:
    """A target and where it is changed: where its ref says, or else at `positions`."""
    if not isinstance(target, Ref) or target.position is None:
        return target, positions
    if target.key is not None and target.position.isdecimal() and int(target.position) < target.key:
        raise InterventionError(f"{target} does not exist: no query attends to a later token.", "Give an earlier key.")
    if positions is not None:
        raise InterventionError(f"{target} names a position, and other positions are given.", "Give one of them.")
    if target.position != "last" and not target.position.isdecimal():
        raise InterventionError(
            f"Which tokens {target.position!r} of {target} means is known of a task only.",
            f"Give the ref without its position, and positions=task.positions({target.position!r}).",
        )
    place = [-1 if target.position == "last" else int(target.position)]
    return target if target.key is not None else target.at(None), place


def _each(
    op: str, targets: Targets, strength: Strength, positions: Positions | None, along: Tensor | None = None
) -> Intervention:
    placed = [_placed(target, positions) for target in _listed(targets)]
    return Intervention(tuple(Change(op, target, strength, where, along) for target, where in placed))
