"""Forms of trained changes of activations: what each computes from an activation and its parameters.

A form is one function and one row of :data:`FORMS`. Parameters are saved by name, so that a file needs no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saekit.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        apply: new activations (N, *token_shape) from the old ones and the parameters.
        shapes: the shape of each parameter, in the sizes d_0, d_1 of a token and free sizes.
    """

    apply: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    shapes: Mapping[str, tuple[str, ...]]


def vector(h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """h + v."""
    return h + own["v"]


def loreft(h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """h + R^T (W h + b - R h), with the r rows of R orthonormal (LoReFT, Wu et al. 2024, arXiv 2404.03592, eq. 2)."""
    return h + (h @ own["W"].T + own["b"] - h @ own["R"].T) @ own["R"]


def jola(z: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """(1 + g2 A) * z + g1 v, with a gate g1 and a gate g2 for each head (JoLA, Lai et al. 2025, arXiv 2502.01179)."""
    return (1 + own["g2"][:, None] * own["A"]) * z + own["g1"][:, None] * own["v"]


FORMS: Registry[Form] = Registry(
    "form of trained change",
    {
        "vector": Form(vector, {"v": ("d_0", "d_1")}),
        "loreft": Form(loreft, {"R": ("r", "d_0"), "W": ("r", "d_0"), "b": ("r",)}),
        "jola": Form(jola, {"A": ("d_0", "d_1"), "v": ("d_0", "d_1"), "g1": ("d_0",), "g2": ("d_0",)}),
    },
)
