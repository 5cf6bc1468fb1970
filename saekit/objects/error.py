"""The error of an SAE or transcoder as an object: what its features leave out of an activation."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import torch
from torch import Tensor

from saekit.errors import InterventionError
from saekit.names.ref import Ref
from saekit.objects.features import Features
from saekit.objects.spaces import Space, ToResidual, Units, wide


class Error(Space):
    """The reconstruction error of a dictionary, the one unit of this space.

    Its coefficient is the vector y - dec(enc(x)), in the shape of one token at `site_out`, where x is the activation at `site`
    and y that at `site_out`; for an SAE both are one. Setting it leaves the features as they are.
    """

    label = "error"
    relative = True

    def __init__(self, features: Features, to_residual: ToResidual | None = None) -> None:
        """Args:
        features: those of the dictionary.
        to_residual: maps vectors at `site_out` to what they write to the residual stream.
        """
        super().__init__(features.site, 1, features.token_shape, to_residual)
        self.features = features
        self.site_out = features.site_out
        self.token_shape_out = features.token_shape_out
        self.unit_shape = self.token_shape_out

    @property
    def _place(self) -> int:
        return -1 - len(self.token_shape_out)

    def read(self, h: Tensor, units: Units | None = None, *, out: Tensor | None = None) -> Tensor:
        """The error (..., 1, *token_shape_out).

        Args:
            h: the activation at `site`.
            out: the activation at `site_out`, where that is another site.

        Raises:
            InterventionError: `out` is missing.
        """
        if out is None:
            if self.site_out != self.site:
                raise InterventionError(
                    f"The error at {self.site_out} cannot be read from {self.site} alone.",
                    f"Pass out=activation at {self.site_out}.",
                )
            out = h
        precision, sae = wide(out.dtype), self.features.sae
        rows = h.reshape(-1, prod(self.token_shape)).to(sae.device, sae.dtype)
        decoded = sae.decode(sae.encode_sparse(rows), rows).to(out.device, precision).reshape(out.shape)
        found = (out.to(precision) - decoded).unsqueeze(self._place)
        return found if units is None else found.index_select(self._place, self.check(units, found.device))

    def read_each(self, h: Tensor, units_Nk: Tensor, *, out: Tensor | None = None) -> Tensor:
        return self.read(h, out=out)

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        if not len(self._check_written(units, h.device)):
            return h
        if current is None:
            current = self.read(h, units)  # raises where h is not the activation that is read
        return self.add(h, units, values - current)

    def add(self, h: Tensor, units: Units, amounts: Tensor | float) -> Tensor:
        precision = wide(h.dtype)
        shape = (*h.shape[: h.ndim - len(self.token_shape_out)], 1, *self.token_shape_out)
        amounts = torch.as_tensor(amounts, device=h.device).to(precision).expand(shape)
        return (h.to(precision) + amounts.squeeze(self._place)).to(h.dtype)

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        return self.write(h, [0], values, current=current)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        found = grad_h.unsqueeze(self._place).to(wide(grad_h.dtype))
        return found if units is None else found.index_select(self._place, self.check(units, found.device))

    def vectors(self, units: Units | None = None) -> Tensor:
        width = prod(self.token_shape_out)
        return torch.eye(width).reshape(1, *self.token_shape_out, width)[self.check(units)]

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        return Ref.error(self.features.address)

    @property
    def key(self) -> Hashable:
        return type(self), self.features.address
