"""Scale or whitening, centre and variance of the data, estimated from a sample before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saekit.errors import NonFiniteActivations
from saekit.sae.whitening import Whitening

_BATCH = 4096  # rows at a time for the covariance


@dataclass
class DataScaling:
    """How activations are scaled for training, and moments of the scaled activations.

    Attributes:
        scale: factor on the activations that makes E||x|| = sqrt(D).
        centre_D: (D,) float32 geometric median or mean of the scaled activations; b_dec starts there.
        variance: E||x - E x||^2 of the scaled activations. A squared reconstruction error divided by it is an FVU.
        mean_D: (D,) float32 E x of the scaled activations.
        parts: for several sites, the scaling of each. Each site is scaled by its own factor before the sites are concatenated, so
            that `scale` of all of them is 1.
        whitening: with the setting `scaling="whitening"`, the change of coordinates in place of the scale, which is 1. The centre
            and the moments are then those of whitened activations.
    """

    scale: float
    centre_D: Tensor
    variance: float
    mean_D: Tensor
    parts: tuple[DataScaling, ...] = ()
    whitening: Whitening | None = None

    @classmethod
    def joined(cls, parts: Sequence[DataScaling]) -> DataScaling:
        """The scaling of concatenated sites."""
        if len(parts) == 1:
            return parts[0]
        centre_D, mean_D = (torch.cat([getattr(part, name) for part in parts]) for name in ("centre_D", "mean_D"))
        return cls(1.0, centre_D, sum(part.variance for part in parts), mean_D, tuple(parts))

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers per token of every site."""
        return tuple(len(part.centre_D) for part in self.parts or (self,))

    @classmethod
    def of(cls, sample_ND: Tensor, centre: Literal["geometric_median", "mean"], *, whiten: bool = False) -> DataScaling:
        """Estimate from a sample of activations (N, D).

        Raises:
            NonFiniteActivations: the sample holds NaN or infinity.
        """
        x_ND = sample_ND.cpu().double()
        bad = (~x_ND.isfinite()).any(1).nonzero()
        if len(bad):
            raise NonFiniteActivations(
                f"{len(bad)} of the first {len(x_ND)} activation vectors hold NaN or infinity, the first at row {int(bad[0])}.",
                "Look at the model's dtype: float16 overflows where bfloat16 does not.",
            )
        norm, whitening = x_ND.norm(dim=1).mean().item(), Whitening.of(sample_ND.split(_BATCH)) if whiten else None
        scale = x_ND.shape[1] ** 0.5 / norm if norm > 0 and not whiten else 1.0
        x_ND = x_ND.mul_(scale) if whitening is None else whitening.apply(x_ND)
        mean_D = x_ND.mean(0)
        variance = (x_ND - mean_D).square().sum(1).mean().item()
        centre_D = geometric_median(x_ND) if centre == "geometric_median" else mean_D
        variance = max(variance, torch.finfo(torch.float32).tiny)
        return cls(scale, centre_D.float(), variance, mean_D.float(), whitening=whitening)

    @property
    def key(self) -> float | str:
        """Equal for scalings that scale equally."""
        return self.scale if self.whitening is None else self.whitening.key

    def scaled(self, x_ND: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Activations in the units of training, on `device`."""
        x_ND = x_ND.to(device, dtype, non_blocking=True)
        return x_ND * self.scale if self.whitening is None else self.whitening.apply(x_ND)

    def unscaled(self, x_ND: Tensor) -> Tensor:
        """Activations of one site as the model has them, from those in the units of training."""
        return x_ND / self.scale if self.whitening is None else self.whitening.reversed.apply(x_ND)

    def to_dict(self) -> dict[str, Any]:
        """The values without the whitening as plain data for JSON; :meth:`from_dict` restores them exactly."""
        if self.parts:
            return {"parts": [part.to_dict() for part in self.parts]}
        facts = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return {name: value for name, value in facts.items() if name not in ("parts", "whitening")}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> DataScaling:
        """The scaling that :meth:`to_dict` describes, without a whitening."""
        if "parts" in facts:
            return cls.joined([cls.from_dict(part) for part in facts["parts"]])
        tensors = {name: torch.tensor(value) for name, value in facts.items() if isinstance(value, list)}
        return cls(**(facts | tensors))


def geometric_median(x_ND: Tensor, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point (D,) with the least summed distance to the rows, by Weiszfeld's algorithm."""
    guess_D = x_ND.mean(0)
    for _ in range(steps):
        distance_N = (x_ND - guess_D).norm(dim=1).clamp_min(1e-12)
        weight_N = 1 / distance_N
        new_D = (weight_N @ x_ND) / weight_N.sum()
        if (new_D - guess_D).norm() <= tolerance * guess_D.norm():
            return new_D
        guess_D = new_D
    return guess_D
