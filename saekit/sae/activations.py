"""Activation functions: how a latent's pre-activation `h = x @ W_enc` becomes its coefficient in the code.

Shapes: N rows, D inputs, F latents, K latents kept per row. `p` maps the names of an architecture's (F,) tensors to tensors; if
only some latents or entries are computed, the tensors hold the values of those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from saekit.plugins import resolve
from saekit.sae import kernels

Tensors = Mapping[str, Tensor]


class Activation:
    """Base class. Subclass :class:`Threshold` or :class:`Selection`.

    Attributes:
        parameters: names of the (F,) tensors that it needs, besides W_enc, W_dec and b_dec.
        scaled: those of them that are in units of pre-activations: with W_enc they are multiplied by c where codes are.
        signed: whether coefficients may be negative. A latent then stands for two opposite directions, and its magnitude says how
            strongly it fires.
    """

    parameters: tuple[str, ...] = ("b_enc",)
    scaled: tuple[str, ...] = ("b_enc",)
    signed: bool = False

    def shift(self, p: Tensors, by_F: Tensor) -> dict[str, Tensor]:
        """The parameters with which a product that is larger by `by_F` gives the same code as before."""
        return {**p, "b_enc": p["b_enc"] - by_F}


class Threshold(Activation, ABC):
    """Acts on each latent alone: `f = values(h + bias)` where `h + bias > floor`, else 0; computed without a (N, F) matrix."""

    def bias(self, p: Tensors) -> Tensor | None:
        """What is added to the product; None for nothing."""
        return p["b_enc"]

    @abstractmethod
    def floor(self, p: Tensors) -> Tensor:
        """The pre-activation above which a latent may fire; one number for all latents or one for each."""

    def values(self, pre: Tensor, p: Tensors) -> Tensor:
        """Coefficients of pre-activations above the floor, of equal shape; 0 where the latent does not fire after all."""
        return pre


class Selection(Activation, ABC):
    """Compares all latents of a row and keeps K of them."""

    @abstractmethod
    def select(self, x_ND: Tensor, W_enc_FD: Tensor, p: Tensors, k: int) -> tuple[Tensor, Tensor]:
        """Coefficients (N, K) and latents (N, K) int64; a row with fewer is padded with coefficient 0."""


class ReLU(Threshold):
    """`f = ReLU(h + b_enc)` (arXiv 2309.08600; transcoders 2406.11944)."""

    def floor(self, p: Tensors) -> Tensor:
        return p["b_enc"].new_zeros(1)


class JumpReLU(Threshold):
    """`f = ReLU(h + b_enc) * 1[h + b_enc > threshold]` (arXiv 2407.14435)."""

    parameters = ("b_enc", "threshold")
    scaled = ("b_enc", "threshold")

    def floor(self, p: Tensors) -> Tensor:
        return p["threshold"].clamp_min(0)


class Gated(Threshold):
    """`f = 1[h + b_gate > 0] * ReLU(h * exp(r_mag) + b_mag)` (arXiv 2404.16014)."""

    parameters = ("b_gate", "b_mag", "r_mag")
    scaled = ("b_gate", "b_mag")

    def shift(self, p: Tensors, by_F: Tensor) -> dict[str, Tensor]:
        return {**p, "b_gate": p["b_gate"] - by_F, "b_mag": p["b_mag"] - by_F * p["r_mag"].exp()}

    def bias(self, p: Tensors) -> None:
        return None

    def floor(self, p: Tensors) -> Tensor:
        return -p["b_gate"]

    def values(self, pre: Tensor, p: Tensors) -> Tensor:
        return torch.relu(pre * p["r_mag"].exp() + p["b_mag"])


class TopK(Selection):
    """`f = ReLU(TopK_k(h + b_enc))` (arXiv 2406.04093)."""

    def select(self, x_ND: Tensor, W_enc_FD: Tensor, p: Tensors, k: int) -> tuple[Tensor, Tensor]:
        return kernels.encode_topk(x_ND, W_enc_FD, p["b_enc"], k)


class AbsTopK(Selection):
    """The k largest `|h + b_enc|`, with their signs (arXiv 2510.00404)."""

    signed = True

    def select(self, x_ND: Tensor, W_enc_FD: Tensor, p: Tensors, k: int) -> tuple[Tensor, Tensor]:
        return kernels.encode_abstopk(x_ND, W_enc_FD, p["b_enc"], k)


class OfModule(Activation):
    """The module of the architecture encodes in its own way; there are no (F,) tensors."""

    parameters = ()
    scaled = ()


ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "jumprelu": JumpReLU(),
    "gated": Gated(),
    "topk": TopK(),
    "abstopk": AbsTopK(),
    "matching_pursuit": OfModule(),
    "temporal": OfModule(),
}


def activation(name: str) -> Activation:
    """The activation that a row of the architecture table names."""
    found: Activation = ACTIVATIONS[name] if name in ACTIVATIONS else resolve(name)
    return found
