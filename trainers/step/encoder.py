"""The encoder of a training step, which keeps only pre-activations that may be active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from saekit.sae.kernels import encode_above, encode_abstopk, encode_topk
from trainers.step.parameters import Parameters


@dataclass(frozen=True)
class Encoder:
    """`W_enc x + b_enc` for all latents, or for those in `among` (ascending order).

    Attributes:
        layers: 1, or in a cross-layer transcoder the number of layers. x then concatenates the inputs of all layers, and
            the latents are divided evenly over the layers; W_enc is as wide as one layer.
    """

    layers: int = 1

    def above(
        self, p: Parameters, x_BD: Tensor, floor_F: Tensor, expected: float, among: Tensor | None = None, **how: Any
    ) -> Code:
        """All pre-activations above a floor, which is (F,) or one number; see :func:`saekit.sae.kernels.encode_above`."""
        how["expected"] = expected / self.layers
        codes = []
        for x, rows, first in self._apart(p, x_BD, among):
            floor = floor_F[rows] if floor_F.numel() > 1 else floor_F
            code = Code(*encode_above(x, p.W_enc_FD[rows], p.b_enc_F[rows], floor, **how))
            codes.append(replace(code, latents_N=_named(code.latents_N, rows, first)))
        return codes[0] if len(codes) == 1 else Code.joined(codes)

    def topk(
        self, p: Parameters, x_BD: Tensor, k: int, among: Tensor | None = None, *, signed: bool = False, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Values and latents (B, k) of the k largest entries of each row, or of all if there are fewer; see
        :func:`saekit.sae.kernels.encode_topk`. Of the largest magnitudes if `signed`; see
        :func:`saekit.sae.kernels.encode_abstopk`."""
        encode = encode_abstopk if signed else encode_topk
        how = {name: value for name, value in how.items() if not (signed and name == "screen")}
        found = []
        for x, rows, first in self._apart(p, x_BD, among):
            b_enc_F = p.b_enc_F[rows]
            values, latents = encode(x, p.W_enc_FD[rows], b_enc_F, min(k, len(b_enc_F)), **how)
            found.append((values, _named(latents, rows, first)))
        if len(found) == 1:
            return found[0]
        values_BN, latents_BN = (torch.cat(each, 1) for each in zip(*found))
        best_BK = values_BN.detach().abs().topk(min(k, values_BN.shape[1]), dim=1).indices
        return values_BN.gather(1, best_BK), latents_BN.gather(1, best_BK)

    def _apart(self, p: Parameters, x_BD: Tensor, among: Tensor | None) -> Iterator[tuple[Tensor, slice | Tensor, int]]:
        """For each layer that has latents: its input, its latents, and the index of its first latent."""
        if self.layers == 1:
            yield x_BD, slice(None) if among is None else among, 0
            return
        own = len(p.b_enc_F) // self.layers
        for layer, x in enumerate(x_BD.chunk(self.layers, 1)):
            first = layer * own
            rows = slice(first, first + own) if among is None else among[(among >= first) & (among < first + own)]
            if isinstance(rows, slice) or len(rows):
                yield x.contiguous(), rows, first


WHOLE = Encoder()
"""The encoder of dictionaries whose latents read the whole input."""


def _named(latents: Tensor, rows: slice | Tensor, first: int) -> Tensor:
    """Indices among all latents, given indices among `rows`."""
    return rows[latents] if isinstance(rows, Tensor) else latents + first if first else latents
