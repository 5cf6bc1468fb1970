"""Conditions: where a change holds, said by an object of the model, the text, or a position.

Steering only where a condition holds leaves other text as it is. CAST (Lee et al. 2024) compares the prompt with a direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.objects import Ref
from saekit.steer.reading import keyed, numbers, text
from saekit.steer.strength import Strength
from saekit.steer.target import Target, Vector

if TYPE_CHECKING:
    from saekit.lm import At

SIGNS: dict[str, Callable[[Tensor, float], Tensor]] = {
    ">=": torch.ge,
    "<=": torch.le,
    "==": torch.eq,
    ">": torch.gt,
    "<": torch.lt,
}
_PARTS = re.compile(r"(?P<what>.+?)\s*(?P<sign>>=|<=|==|>|<|~)\s*(?P<value>.+?)(?P<scope>\s+in\s+prompt)?\s*", re.DOTALL)
_HINT = (
    "Write it like 'feature:resid_post.3/12 > 2', 'feature:resid_post.3/12 > 2 in prompt', 'token == \" cat\"', "
    "'text ~ \"[Ff]rench\"', 'position >= 4' or 'prompt == 0'."
)
Said = Literal["token", "text", "position", "prompt"]


@dataclass(frozen=True, eq=False)
class Condition:
    """What must hold at a token for a change to be made there.

    ::

        feature:resid_post.3/12 > 2            the coefficient of an object at the token, before changes at its site
        feature:resid_post.3/12 > 2 in prompt  the largest one among the ordinary tokens of the prompt
        token == " cat"                        the text of the token; `in prompt`: of some token of the prompt
        token ~ "^ ?cats?$"                    the same by a regular expression
        text ~ "[Ff]rench"                     the text of the prompt has a match of the regular expression
        position >= 4                          place of the token in its sequence, counted from 0 without pads
        prompt == 0                            number of the prompt in the batch

    Attributes:
        what: an object, a direction, or one of the words "token", "text", "position", "prompt".
        sign: one of > >= < <=; == too for numbers of tokens and prompts; == or ~ for texts.
        value: a strength for objects, in a unit; a text for tokens and texts; a number for positions and prompts.
        scope: "token" or "prompt".
        threshold: the value of an object as a coefficient; None until resolved.

    Raises:
        InterventionError: the parts do not fit together.
    """

    what: Target | Said
    sign: str
    value: Strength | str | int
    scope: Literal["token", "prompt"] = "token"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.scope not in ("token", "prompt"):
            raise InterventionError(f"There is no scope {self.scope!r:.40} of a condition.", "Choose token or prompt.")
        texts, numbers = self.what in ("token", "text"), self.what in ("position", "prompt")
        signs = ("==", "~") if self.what == "token" else ("~",) if texts else tuple(SIGNS) if numbers else (">", ">=", "<", "<=")
        kind = str if texts else int if numbers else Strength
        if isinstance(self.what, str) and not texts and not numbers:
            raise InterventionError(f"A condition on {self.what!r:.40} is not possible.", _HINT)
        if self.sign not in signs:
            raise InterventionError(f"{self.what} cannot be compared by {self.sign!r:.10}.", f"Choose from {' '.join(signs)}.")
        if not isinstance(self.value, kind) or isinstance(self.value, bool):
            raise InterventionError(f"{self.what} cannot be compared with {self.value!r:.80}.", _HINT)
        if isinstance(self.value, Strength) and len(self.value.values) != 1:
            raise InterventionError(f"The threshold {self.value} of {self.what} has several values.", "Give one.")
        if self.sign == "~":
            try:
                re.compile(str(self.value))
            except re.error as error:
                raise InterventionError(f"{self.value!r:.80} is not a regular expression: {error}.") from error
        if numbers and self.scope == "prompt":
            raise InterventionError(f"{self.what} has no other value in the prompt.", "Leave out 'in prompt'.")

    @classmethod
    def of(cls, given: Condition | str) -> Condition:
        """A condition from a text as above, or itself.

        Raises:
            InterventionError: the text is in none of these forms.
            UnknownRef: it names an object that cannot exist.
        """
        return given if isinstance(given, Condition) else cls.parse(given, Ref.parse)

    @classmethod
    def parse(cls, text: str, target: Callable[[str], Target]) -> Condition:
        """Read a text; `target` reads the name of an object in it."""
        match = _PARTS.fullmatch(text)
        if match is None:
            raise InterventionError(f"{text!r:.120} is not a condition.", _HINT)
        what, value = match["what"].strip(), match["value"].strip()
        scope: Literal["token", "prompt"] = "prompt" if match["scope"] else "token"
        if what in ("token", "text"):
            bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
            return cls(what, match["sign"], bare, scope)  # type: ignore[arg-type]
        if what in ("position", "prompt"):
            if not re.fullmatch(r"[0-9]{1,9}", value):
                raise InterventionError(f"{what} cannot be compared with {value!r:.40}.", "Give a number from 0.")
            return cls(what, match["sign"], int(value), scope)  # type: ignore[arg-type]
        return cls(target(what), match["sign"], Strength.parse(value, default="raw"), scope)

    @property
    def target(self) -> Target | None:
        """The object whose coefficient decides; None where the text or the position does."""
        return None if isinstance(self.what, str) else self.what

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for conditions that hold at the same tokens."""
        what = (str(self.what.site), *self.what.values.tolist()) if isinstance(self.what, Vector) else str(self.what)
        # A strength as text has six digits, which two thresholds may share.
        value = (self.value.values, self.value.unit) if isinstance(self.value, Strength) else str(self.value)
        return self.scope, what, self.sign, value, self.threshold

    def holds(self, values: Tensor) -> Tensor:
        """Whether numbers, or coefficients of the object, fulfil it."""
        limit = self.threshold if isinstance(self.value, Strength) else float(self.value)
        assert limit is not None, "resolved"
        return SIGNS[self.sign](values, limit)

    def simple(self, at: At) -> Tensor | None:
        """(N,) where it holds, if this is known from positions alone; else None."""
        if self.what == "position":
            return self.holds(at.position_N)
        return self.holds(at.batch_N) if self.what == "prompt" else None

    def with_threshold(self, threshold: float) -> Condition:
        """The same, resolved."""
        return replace(self, threshold=threshold)

    def to_dict(self, name: str, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
        """JSON values; a direction goes into `tensors` under `name`, where given."""
        what: Any = str(self.what)
        if isinstance(self.what, Vector):
            what = {"site": str(self.what.site), "values": self.what.values.tolist()}
            if tensors is not None:
                tensors[name] = self.what.values.clone()
                what["values"] = {"tensor": name}
        data = {"what": what, "is": self.sign, "value": self.value, "scope": self.scope}
        if isinstance(self.value, Strength):
            data |= {"value": self.value.values[0], "unit": self.value.unit, "threshold": self.threshold}
        return data

    @classmethod
    def from_dict(cls, data: Any, vector: Callable[[Any], Vector]) -> Condition:
        """The condition that :meth:`to_dict` was called on; `vector` reads a direction.

        Raises:
            InterventionError: a value is missing, unknown or of the wrong type.
        """
        keyed(data, "A condition", {"what", "is", "value", "scope"}, {"unit", "threshold"})
        what, value = data["what"], data["value"]
        sign, scope = text(data["is"], "The comparison"), text(data["scope"], "The scope")
        if isinstance(what, Mapping):
            what = vector(what)
        elif text(what, "What a condition is on") not in ("token", "text", "position", "prompt"):
            what = Ref.parse(what)
        if isinstance(what, str):
            return cls(what, sign, value, scope)  # type: ignore[arg-type]
        strength = Strength(numbers(value, "A threshold", depth=0), text(data.get("unit"), "The unit"))
        limit = data.get("threshold")
        return cls(what, sign, strength, scope, None if limit is None else numbers(limit, "A threshold", depth=0))  # type: ignore[arg-type]
