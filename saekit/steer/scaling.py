"""An intervention at other strengths: each strength times a factor, several factors in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from saekit.errors import InterventionError
from saekit.steer.change import Change
from saekit.steer.intervention import Intervention
from saekit.steer.operations import OPERATIONS
from saekit.steer.strength import Strength


def scaled(intervention: Intervention, factors: float | Sequence[float]) -> Intervention:
    """The resolved intervention with every amount multiplied by a factor.

    Args:
        intervention: resolved, with one strength for all prompts.
        factors: one factor, or K factors: prompt k of a batch (`prompt_of_row`) then has the k-th.

    Raises:
        InterventionError: a change has no strength that can vary (ablate, patch, scale), is not resolved, or has a strength for
            each prompt; or, with several factors, it has a condition on the number of the prompt, or places for each prompt.
    """
    values = (factors,) if isinstance(factors, int | float) else tuple(factors)
    if not isinstance(factors, int | float):
        for change in intervention.changes:
            _check_prompts(change)
    return replace(intervention, changes=tuple(_scaled(change, values) for change in intervention.changes))


def _check_prompts(change: Change) -> None:
    """Refuse a change that depends on the number of the prompt, which here is the number of the factor."""
    if any(each.what == "prompt" for each in change.when) or getattr(change.positions, "rows", None) is not None:
        raise InterventionError(
            f"The change of {change.target} depends on the number of the prompt, so that its strength cannot be varied.",
            "Vary the strength of the intervention on one prompt, without the condition or the places for each prompt.",
        )


def _scaled(change: Change, factors: tuple[float, ...]) -> Change:
    operation = OPERATIONS.find(change.op)
    if operation.fixed or operation.factor or operation.by_position or operation.drawn:
        raise InterventionError(f"{change.op} of {change.target} has no strength that can vary.", "Use clamp or add.")
    if change.amounts is None:
        raise InterventionError(f"The strength {change.strength} of {change.target} is not resolved.", "Resolve it first.")
    if len(change.amounts) != 1:
        raise InterventionError(f"{change.target} has a strength for each prompt.", "Give one strength.")
    factor_K = torch.tensor(factors, dtype=change.amounts.dtype)
    amounts = change.amounts * factor_K.view(-1, *[1] * (change.amounts.ndim - 1))
    if change.strength.unit == "quantile":  # a multiple of a quantile is none
        strength = Strength(tuple(amounts.reshape(len(factors), -1)[:, 0].tolist()))
    else:
        strength = Strength(tuple(change.strength.values[0] * factor for factor in factors), change.strength.unit)
    if len(factors) == 1:
        strength = Strength(strength.values[0], strength.unit)
    return replace(change, strength=strength, amounts=amounts)
