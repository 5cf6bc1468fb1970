"""The registry of methods that merge models. A method is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from saekit.plugins import Registry

if TYPE_CHECKING:
    from saekit.steer.merge.job import Job, Piece, Step

_HERE = "saekit.steer.merge"


@dataclass(frozen=True)
class Merge:
    """A method.

    Attributes:
        target: a function that prepares a :class:`Job` and returns a function from each :class:`Piece` to a :class:`Step`; or
            `"package.module:function"`.
        summary: one line for help.
        options: the names of its settings.
        base: whether the method needs the base model.
        texts: the texts that the method needs: "none"; "shared", one set; or "each", a set for each model.
    """

    target: str | Callable[[Job], Callable[[Piece], Step]]
    summary: str
    options: tuple[str, ...] = ("scale",)
    base: bool = True
    texts: Literal["none", "shared", "each"] = "none"


MERGES: Registry[Merge] = Registry(
    "method of merging",
    {
        "arithmetic": Merge(f"{_HERE}.arithmetic:arithmetic", "sum of weighted task vectors"),
        "linear": Merge(f"{_HERE}.linear:linear", "weighted mean of the weights", (), base=False),
        "slerp": Merge(f"{_HERE}.slerp:slerp", "spherical interpolation of two models", ("t",), base=False),
        "ties": Merge(f"{_HERE}.ties:ties", "trim, elect signs, mean of those that agree", ("density", "scale")),
        "dare": Merge(f"{_HERE}.dare:dare", "drop entries at random, rescale, sum", ("drop", "scale", "seed")),
        "dare_ties": Merge(
            f"{_HERE}.dare_ties:dare_ties",
            "drop and rescale, elect signs, mean of those that agree",
            ("drop", "scale", "seed"),
        ),
        "sens": Merge(
            f"{_HERE}.sens:sens", "task vectors weighted by layer and task sensitivities", ("scale", "temperature"), texts="each"
        ),
        "aim": Merge(
            f"{_HERE}.aim:aim", "less change where the base model's inputs are large", ("omega", "scale"), texts="shared"
        ),
        "acm": Merge(
            f"{_HERE}.acm:acm", "less change in layers whose activations tell little new", ("scale", "t"), texts="shared"
        ),
    },
)
