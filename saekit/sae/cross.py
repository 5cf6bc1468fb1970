"""Dictionaries of several sites: crosscoders (one code for all sites) and cross-layer transcoders (latents for each layer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from saekit.errors import StoreMismatch
from saekit.names.site import Site
from saekit.sae.activations import Threshold
from saekit.sae.code import Code, SparseCode
from saekit.sae.kernels import encode_above
from saekit.sae.modules import SAE

Acts = Mapping[Site, Tensor]


class CrossCoder(SAE):
    """A dictionary that reads several sites and writes several, for inference.

    The input x (..., D) is the concatenation of the activations at `cfg.sites`, the output y (..., E) that of `cfg.sites_out`.
    All methods of :class:`SAE` work on these; the encoding methods also take a mapping from sites to activations.

    - crosscoder: `h = sum_s x_s @ W_enc_s + b_enc`, and every site is `y_s = f @ W_dec_s + b_dec_s`
      (transformer-circuits.pub/2024/crosscoders; two models, chosen by threshold: arXiv 2504.02922).
    - clt: latents are divided evenly over L layers. The latents of layer l read only x_l, `h = x_l @ W_enc_l + b_enc`, so that
      W_enc is (D / L, F). They write the outputs of layers l to L - 1; their entries of W_dec for other layers are 0
      (transformer-circuits.pub/2025/attribution-graphs/methods).

    The activation function is `relu` or `jumprelu`. sae-lens has no class for these dictionaries.
    """

    def encode(self, x_BD: Tensor | Acts) -> SparseCode | Tensor:
        """Codes of x; see :meth:`SAE.encode`.

        Raises:
            StoreMismatch: a site is missing from x, or has another width.
        """
        return super().encode(self.side_by_side(x_BD))

    def encode_sparse(self, x_BD: Tensor | Acts) -> SparseCode:
        return super().encode_sparse(self.side_by_side(x_BD))

    def decode(self, code: SparseCode | Tensor, x_BD: Tensor | Acts | None = None) -> Tensor:
        return super().decode(code)

    def decode_sites(self, code: SparseCode | Tensor) -> dict[Site, Tensor]:
        """The reconstruction at every site that is written, each (..., width)."""
        return self.apart(self.decode(code))

    def side_by_side(self, x: Tensor | Acts) -> Tensor:
        """The concatenation x (..., D) of activations by site, each (..., width).

        Raises:
            StoreMismatch: a site is missing, or of another width.
        """
        if isinstance(x, Tensor):
            return x
        for site, width in zip(self.cfg.sites, self.cfg.widths):
            if site not in x or x[site].shape[-1] != width:
                found = "is missing" if site not in x else f"has {x[site].shape[-1]} numbers per token"
                raise StoreMismatch(f"{self.name} reads {width} numbers per token at {site}, which {found}.")
        return torch.cat([x[site].to(self.device, self.dtype) for site in self.cfg.sites], -1)

    def apart(self, y_BE: Tensor) -> dict[Site, Tensor]:
        """Split y (..., E) into the sites that are written."""
        return dict(zip(self.cfg.sites_out, y_BE.split(self.cfg.widths_out, -1)))

    # Properties of latents

    def decoder_norms(self) -> Tensor:
        """(F, sites) norms of the decoder rows at each site, in units in which activations at the site have mean norm
        sqrt(width), so that sites and models can be compared. The units are known for dictionaries that saekit trained."""
        parts = (self.W_dec.float() * self.scale_E()).split(self.cfg.widths_out, 1)
        return torch.stack([part.norm(dim=1) for part in parts], 1)

    def scale_E(self) -> Tensor:
        """(E,) factors that bring outputs to the units of :meth:`decoder_norms`; 1 where they are unknown."""
        scales = self.cfg.metadata.get("scales_out") or [1.0] * len(self.cfg.widths_out)
        return torch.tensor(scales, device=self.device).repeat_interleave(torch.tensor(self.cfg.widths_out, device=self.device))

    def relative_norms(self) -> Tensor:
        """(F, sites) fractions of a latent's decoder norm; 0 for a latent that writes nothing. For two sites, both are about 0.5
        if the latent belongs to both, and they are 0 and 1 if it belongs to one."""
        norms_FS = self.decoder_norms()
        total_F1 = norms_FS.sum(1, keepdim=True)
        return norms_FS / total_F1.where(total_F1 > 0, 1.0)

    def latents_of(self, layer: int) -> slice:
        """The latents that read `cfg.sites[layer]`: those of the layer in a cross-layer transcoder, all in a crosscoder."""
        own = self.cfg.n_latents // len(self.cfg.sites)
        return slice(layer * own, (layer + 1) * own) if self.cfg.layered else slice(0, self.cfg.n_latents)

    def written_by(self, layer: int, x_BD: Tensor) -> Tensor:
        """The output (..., E) of the latents of one layer of a cross-layer transcoder, given the activations of that layer."""
        own = torch.arange(self.cfg.n_latents, device=self.device)[self.latents_of(layer)]
        x_ND = x_BD.reshape(-1, x_BD.shape[-1]).to(self.device, self.dtype)
        layers_ND = x_ND.new_zeros(len(x_ND), self.cfg.d_in)
        layers_ND.view(len(x_ND), len(self.cfg.sites), -1)[:, layer] = x_ND
        function = self.cfg.activation_function
        assert isinstance(function, Threshold)
        code_NF = self._activate(layers_ND, own, function)
        return (code_NF @ self.W_dec[own]).reshape(*x_BD.shape[:-1], self.cfg.d_out)

    @torch.no_grad()
    def fold_scales(self, reads: Sequence[float], writes: Sequence[float]) -> CrossCoder:
        """Like :meth:`SAE.fold_scale`, with a factor for every site. The output factors are kept in the metadata."""
        for scale, part in zip(writes, self.W_dec.split(self.cfg.widths_out, 1)):
            part.div_(scale)
        for scale, part in zip(writes, self.b_dec.split(self.cfg.widths_out)):
            part.div_(scale)
        if self.cfg.layered:
            for layer, scale in enumerate(reads):
                self.W_enc[:, self.latents_of(layer)].mul_(scale)
        else:
            for scale, part in zip(reads, self.W_enc.split(self.cfg.widths)):
                part.mul_(scale)
        self.cfg.metadata["scales_out"] = [float(scale) for scale in writes]
        return self

    def _project(self, x_ND: Tensor, features: Tensor, bias_n: Tensor | None) -> Tensor:
        if not self.cfg.layered:
            return super()._project(x_ND, features, bias_n)
        W_FD, parts = self.W_enc.T, x_ND.split(self.cfg.widths[0], 1)
        layer_n = features // (self.cfg.n_latents // len(parts))
        out_Nn = x_ND.new_empty(len(x_ND), len(features))
        for layer in layer_n.unique().tolist():
            chosen = (layer_n == layer).nonzero()[:, 0]
            out_Nn = out_Nn.index_copy(1, chosen, linear(parts[layer], W_FD[features[chosen]]))
        return out_Nn if bias_n is None else out_Nn + bias_n

    def _candidates(self, x_ND: Tensor, bias_F: Tensor | None, floor_F: Tensor) -> Code:
        if not self.cfg.layered:
            return super()._candidates(x_ND, bias_F, floor_F)
        codes = []
        for layer, x in enumerate(x_ND.split(self.cfg.widths[0], 1)):
            own = self.latents_of(layer)
            bias, floor = bias_F if bias_F is None else bias_F[own], floor_F[own] if floor_F.numel() > 1 else floor_F
            pre_N, latents_N, start_N1 = encode_above(x.contiguous(), self.W_enc.T[own], bias, floor)
            codes.append(Code(pre_N, latents_N + own.start, start_N1))
        return Code.joined(codes)
