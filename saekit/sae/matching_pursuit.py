"""Matching pursuit: the encoder picks one latent after the other, each for what the latents before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saekit.sae.code import Code, SparseCode
from saekit.sae.modules import SAE
from saekit.sae.options import MatchingPursuitOptions

_CHUNK_NUMBERS = 1 << 23  # products with the decoder held at a time


class MatchingPursuit(SAE):
    """An SAE that encodes by matching pursuit with its own decoder rows (arXiv 2506.03093), as sae-lens computes it.

    With the residual r = x - b_dec at the start, an iteration picks the latent i with the largest `ReLU(r . W_dec[i])`, adds
    that value to its coefficient and subtracts `value * W_dec[i]` from r. A row is done when its support stays the same or the
    norm of its residual falls below a threshold; see :class:`saekit.sae.options.MatchingPursuitOptions`.

    There is no encoder matrix: `W_enc` is the transposed decoder.
    """

    @property
    def W_enc(self) -> Tensor:  # type: ignore[override]
        return self.W_dec.T

    def encode_sparse(self, x_BD: Tensor) -> SparseCode:
        """Codes of x (..., D), in ascending order of latents; see :meth:`SAE.encode_sparse`."""
        x_ND, lead = self._rows(x_BD)
        x_ND = self._centre(x_ND)
        wrong_N = ~x_ND.detach().isfinite().all(1)
        code = self._pursue(x_ND.masked_fill(wrong_N[:, None], 0))
        return SparseCode.of_rows(code.with_nan(wrong_N), lead)

    def encode_features(self, x_BD: Tensor, features: Sequence[int] | Tensor) -> Tensor:
        """The columns `features` of :meth:`encode_dense`. Every latent depends on the others, so all are encoded."""
        wanted = self._features(features)
        return self.encode_dense(x_BD)[..., wanted]

    @property
    def _added(self) -> Tensor:
        return self.b_dec if self.cfg.apply_b_dec_to_input else torch.zeros_like(self.b_dec)

    @torch.no_grad()
    def fold_scale(self, input_scale: float, output_scale: float | None = None) -> MatchingPursuit:
        """Like :meth:`SAE.fold_scale`, but codes come out in the units of the data, because decoder rows keep their norm."""
        options = self.cfg.options
        assert isinstance(options, MatchingPursuitOptions)
        self.b_dec.div_(input_scale)
        self.cfg.options = replace(options, residual_threshold=options.residual_threshold / input_scale)
        if self.cfg.normalize_activations == "expected_average_only_in":
            self.cfg.normalize_activations = "none"
        return self

    def _pursue(self, r_ND: Tensor) -> Code:
        options = self.cfg.options
        assert isinstance(options, MatchingPursuitOptions)
        limit, N = options.residual_threshold, len(r_ND)
        rows_n = torch.arange(N, device=r_ND.device)  # rows that are not done
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, latents, values of every iteration
        support = torch.empty(0, dtype=torch.int64, device=r_ND.device)  # row * F + latent, sorted
        for _ in range(self.cfg.d_in if options.max_iterations is None else options.max_iterations):
            latent_n = self._best(r_ND)
            chosen_nD = self.W_dec[latent_n]
            value_n = (r_ND * chosen_nD).sum(-1).relu()
            r_ND = r_ND - value_n[:, None] * chosen_nD
            found.append((rows_n, latent_n, value_n))
            done_n = torch.zeros_like(rows_n, dtype=torch.bool)
            if options.stop_on_duplicate_support:
                key_n = rows_n * self.cfg.n_latents + latent_n
                fires_n = value_n.detach() > 0
                done_n = ~fires_n | torch.isin(key_n, support)
                support = torch.cat([support, key_n[fires_n]])
            if limit > 0:
                done_n = done_n | (r_ND.detach().norm(dim=-1) < limit)
            rows_n, r_ND = rows_n[~done_n], r_ND[~done_n]
            if not len(rows_n):
                break
        return self._joined(found, N)

    def _joined(self, found: list[tuple[Tensor, Tensor, Tensor]], N: int) -> Code:
        """One code from the choices of all iterations; a latent that was chosen again has the sum of its values."""
        rows, latents, values = (torch.cat(parts) for parts in zip(*found))
        keys, place = (rows * self.cfg.n_latents + latents).unique(return_inverse=True)
        total = values.new_zeros(len(keys)).index_add(0, place, values)
        fires = total.detach() != 0
        keys, total = keys[fires], total[fires]
        counts_N = torch.bincount(keys // self.cfg.n_latents, minlength=N)
        start_N1 = torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)])
        return Code(total, keys % self.cfg.n_latents, start_N1)

    @torch.no_grad()
    def _best(self, r_ND: Tensor) -> Tensor:
        """The latent with the largest product with each residual (N,); latent 0 where no product is above 0."""
        parts = r_ND.split(max(1, _CHUNK_NUMBERS // self.cfg.n_latents))
        return torch.cat([(part @ self.W_dec.T).relu().max(dim=1).indices for part in parts])
