"""Schedules: how the effect of a change grows or decays from token to token.

A constant push degenerates into one repeated word; one that decays leaves the model to go on by itself. The effect of a change is
the difference that it makes to a coefficient: with the factor f, a' := a + f (op(a) - a). For `add` this is the strength times f.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.plugins import Registry

# By kind: the factor at step n >= 0 and the number N of the schedule.
KINDS: Registry[Callable[[Tensor, float], Tensor]] = Registry(
    "schedule",
    {
        "half": lambda step, n: 0.5 ** (step / n),
        "linear": lambda step, n: (1 - step / n).clamp_min(0),
        "first": lambda step, n: (step < n).to(step.dtype),
        "after": lambda step, n: (step >= n).to(step.dtype),
        "every": lambda step, n: (step % n == 0).to(step.dtype),
    },
)
_HINT = "Write half:16, linear:32, first:16, after:4, every:2, or factors: 1,.8,.6."
_KIND = re.compile(r"(?P<kind>[a-z_]+):(?P<number>[0-9.eE+-]+)")


@dataclass(frozen=True)
class Schedule:
    """Factors of an effect by step: 0 at the last token of the prompt and before, 1 at the first generated token, and so on.

    ::

        half:16     halves every 16 tokens
        linear:32   falls to 0 within 32 tokens
        first:16    1 for 16 tokens, 0 afterwards
        after:4     0 for 4 tokens, 1 afterwards
        every:2     1 at every second token
        1,.8,.6     these factors; the last one stays

    Attributes:
        kind: a row of :data:`KINDS`; empty for a list of factors.
        number: N of the kind.
        factors: by step, for a list.

    Raises:
        InterventionError: N is not positive, or a factor is not a finite number.
    """

    kind: str = ""
    number: float = 0.0
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.kind) == bool(self.factors):
            raise InterventionError("A schedule is a kind with a number, or a list of factors.", _HINT)
        if self.kind and not (self.kind in KINDS and 0 < self.number < float("inf")):
            raise InterventionError(f"There is no schedule {self}.", _HINT)
        if not all(abs(factor) < float("inf") for factor in self.factors):
            raise InterventionError(f"The factors {self} are not finite numbers.", _HINT)

    @classmethod
    def parse(cls, given: Any) -> Schedule:
        """Read a text as above.

        Raises:
            InterventionError: `given` is none of these.
        """
        if isinstance(given, Schedule):
            return given
        text = str(given).strip()
        try:
            if match := _KIND.fullmatch(text):
                return cls(match["kind"], float(match["number"]))
            return cls(factors=tuple(float(part) for part in text.split(",")))
        except ValueError as error:
            raise InterventionError(f"{text!r:.80} is not a schedule.", _HINT) from error

    def at(self, step_N: Tensor) -> Tensor:
        """The factor at each step, float32."""
        if self.kind:
            return KINDS[self.kind](step_N.float(), self.number)
        factors = torch.tensor(self.factors, device=step_N.device)
        return factors[step_N.clamp_max(len(self.factors) - 1)]

    def __str__(self) -> str:
        """The text that :meth:`parse` reads, with all digits."""
        return f"{self.kind}:{_digits(self.number)}" if self.kind else ",".join(map(_digits, self.factors))


def _digits(number: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(float(number)).removesuffix(".0")
