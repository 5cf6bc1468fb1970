"""The features of an SAE or transcoder as a space whose writes keep the reconstruction error."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.errors import InterventionError, StoreMismatch
from saekit.names.address import Address
from saekit.names.ref import Ref
from saekit.names.site import Site
from saekit.objects.spaces import Space, ToResidual, Units, add_vectors, along, wide

if TYPE_CHECKING:
    from saekit.sae import SAE


class Features(Space):
    """Latents of an SAE, set by y = x + (values - current) @ W_dec[units].

    This equals decoding the changed code and adding the error e = x - dec(enc(x)), but it computes the given units only: one
    encoder column per unit if the architecture decides each latent by itself (ReLU, JumpReLU, gated), a full encode if latents
    compete (TopK), and no encode for :meth:`add`.

    A transcoder is read at `site` and written at `site_out`. `read` takes an activation at `site`; `write` and `add` take one at
    `site_out`, and `write` needs `current`.
    """

    label = "feature"
    relative = True

    def __init__(
        self,
        sae: SAE,
        site: Site,
        *,
        site_out: Site | None = None,
        token_shape: tuple[int, ...] | None = None,
        token_shape_out: tuple[int, ...] | None = None,
        to_residual: ToResidual | None = None,
        address: Address | None = None,
    ) -> None:
        """Args:
        sae: reads d_in numbers per token and has n_latents features.
        site, site_out: where it reads and writes; `site_out` is `site` by default.
        token_shape, token_shape_out: shape of one token there; (d_in,) and (d_out,) by default.
        to_residual: maps vectors at `site_out` to what they write to the residual stream.
        address: of the dictionary, from which refs are made; that of an unnamed one at `site` by default.

        Raises:
            StoreMismatch: the SAE's widths are not those of the sites.
        """
        super().__init__(site, sae.cfg.n_latents, token_shape or (sae.cfg.d_in,), to_residual)
        self.sae = sae
        self.address = address or Address.parse(site)
        self.site_out = site_out or site
        self.token_shape_out = token_shape_out or (self.token_shape if self.site_out == site else (sae.cfg.d_out,))
        for width, shape, place in (
            (sae.cfg.d_in, self.token_shape, site),
            (sae.cfg.d_out, self.token_shape_out, self.site_out),
        ):
            if width != prod(shape):
                raise StoreMismatch(
                    f"The SAE is {width} wide at {place}, which has {prod(shape)} numbers per token.", "It is for another model."
                )

    def read(self, h: Tensor, units: Units | None = None) -> Tensor:
        rows = self._rows(h)
        acts = self.sae.encode_dense(rows) if units is None else self.sae.encode_features(rows, self._checked(units))
        return acts.to(h.device, wide(h.dtype)).reshape(*self._leading(h), acts.shape[-1])

    def write(self, h: Tensor, units: Units, values: Tensor | float, *, current: Tensor | None = None) -> Tensor:
        self._check_written(units, h.device)
        if current is None:
            if self.site_out != self.site:
                raise InterventionError(
                    f"Features of {self.site} are written at {self.site_out}, where they cannot be read.",
                    f"Pass current=read(activation at {self.site}).",
                )
            current = self.read(h, units)
        return self.add(h, units, values - current)

    def add(self, h: Tensor, units: Units, amounts: Tensor | float) -> Tensor:
        if self._rescales:
            amounts = amounts * self._scale(h)
        return add_vectors(h, amounts, self.vectors(units), len(self.token_shape_out))

    def write_each(self, h: Tensor, units_Nk: Tensor, values: Tensor, *, current: Tensor | None = None) -> Tensor:
        if current is None:
            return super().write_each(h, units_Nk, values)
        precision = wide(h.dtype)
        amounts = values.to(precision) - current.to(precision)
        if self._rescales:
            amounts = amounts * self._scale(h)
        vectors_NkW = self.sae.W_dec[units_Nk.to(self.sae.device)].to(h.device, precision)
        flat = h.flatten(1).to(precision) + torch.einsum("nk,nkw->nw", amounts.expand(units_Nk.shape), vectors_NkW)
        return flat.to(h.dtype).reshape(h.shape)

    def pullback(self, grad_h: Tensor, h: Tensor, units: Units | None = None) -> Tensor:
        gradient = along(grad_h, self.vectors(units), len(self.token_shape_out))
        return gradient * self._scale(h) if self._rescales else gradient

    def vectors(self, units: Units | None = None) -> Tensor:
        vectors = self.sae.feature_vectors(None if units is None else self._checked(units))
        return vectors.to(wide(vectors.dtype))

    def lengths(self, units: Units, norm: float) -> Tensor:
        lengths = super().lengths(units, norm)
        if self._rescales:
            typical = torch.full((1, self.sae.cfg.d_in), norm / self.sae.cfg.d_in**0.5, device=self.sae.device)
            typical[:, ::2] *= -1  # of mean zero, because a layer norm removes the mean
            lengths = lengths * self.sae.scale(typical).to(lengths).squeeze(-1)
        return lengths

    def ref(self, unit: int) -> Ref:
        self.check([unit])
        return Ref.feature(self.address, unit)

    def _checked(self, units: Units) -> Units:
        """Units that exist. A list stays a list, which the SAE reads faster than a tensor."""
        index = self.check(units)
        return units if isinstance(units, list) else index

    @property
    def key(self) -> Hashable:
        return type(self), self.address

    def _scale(self, h: Tensor) -> Tensor:
        """(..., 1) what the decoder's output at a token is multiplied by: the scale of that token's input."""
        return self.sae.scale(self._rows(h)).to(h.device, wide(h.dtype)).reshape(*self._leading(h), 1)

    @property
    def _rescales(self) -> bool:
        return self.sae.cfg.normalizes and not self.sae.cfg.transcodes

    def _rows(self, h: Tensor) -> Tensor:
        return h.reshape(-1, prod(self.token_shape)).to(self.sae.device, self.sae.dtype)

    def _leading(self, h: Tensor) -> torch.Size:
        return h.shape[: h.ndim - len(self.token_shape)]
