"""Temporal SAEs: what earlier tokens predict is taken away, and the rest is encoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from saekit.errors import ConfigError, StoreMismatch
from saekit.sae.code import Code, SparseCode
from saekit.sae.modules import SAE
from saekit.sae.normalization import normalize
from saekit.sae.options import TemporalOptions

_EPS = 1e-6
_SCALAR = "constant_scalar_rescale"


class Temporal(SAE):
    """A temporal SAE (arXiv 2511.01836), as sae-lens computes it.

    Attention over the codes of earlier tokens predicts a part of each activation (the predicted codes). A sparse encoder
    encodes what is left (the novel codes), which are the features. Codes of a token depend on the tokens before it, so inputs
    are whole contexts: (batch, tokens, D), or (batch, tokens, heads, d_head).

    A code holds the novel part. `decode(code, x)` and `forward(x)` add the predicted part, which they compute from x; without
    x, `decode` gives the novel part alone, as in sae-lens.
    """

    def encode_sparse(self, x_BD: Tensor) -> SparseCode:
        """Novel codes of contexts x (B, T, D), in ascending order of latents.

        Raises:
            StoreMismatch: x is not (B, T, D).
        """
        x_BTD = self._contexts(x_BD)
        novel_NF = self._encode(x_BTD)[0].flatten(0, 1)
        wrong_N = ~x_BTD.detach().isfinite().all(-1).flatten()
        return SparseCode.of_rows(Code.of_dense(novel_NF).with_nan(wrong_N), x_BTD.shape[:2])

    def encode_features(self, x_BD: Tensor, features: Sequence[int] | Tensor) -> Tensor:
        """The columns `features` of :meth:`encode_dense`. Attention mixes all latents, so all are encoded."""
        wanted = self._features(features)
        return self.encode_dense(x_BD)[..., wanted]

    def decode(self, code: SparseCode | Tensor, x_BD: Tensor | None = None) -> Tensor:
        """The reconstruction of x, or what the novel codes alone give, where x is not given; see :class:`Temporal`."""
        if isinstance(code, Tensor):
            out = code.to(self.device, self.dtype) @ self.W_dec
        else:
            out = code.rows.decode(self.W_dec).reshape(*code.lead, self.cfg.d_out)
        if x_BD is not None:
            out = out + self._encode(self._contexts(x_BD))[1] @ self.W_dec
        if not self._options.tied_weights or self.cfg.apply_b_dec_to_input:
            out = out + self.b_dec
        if self.cfg.normalize_activations == _SCALAR:
            out = out / self._options.activation_normalization_factor
        if x_BD is None:
            if self.cfg.normalizes:
                raise ConfigError(
                    f"This SAE removes the scale of its input ({self.cfg.normalize_activations}), which a code does not hold.",
                    "Call decode(code, x) with the input that was encoded.",
                )
            return out
        if self.cfg.normalizes:
            _, shift, scale = normalize(self._contexts(x_BD), self.cfg.normalize_activations)
            out = out * scale + shift
        return out.reshape(x_BD.shape)

    def scale(self, x_BD: Tensor) -> Tensor:
        scale = super().scale(x_BD)
        return scale / self._options.activation_normalization_factor if self.cfg.normalize_activations == _SCALAR else scale

    def fold_scale(self, input_scale: float, output_scale: float | None = None) -> Temporal:
        """sae-lens folds no scale into a temporal SAE either.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("A scale of the data cannot be folded into a temporal SAE.", "Its configuration holds the scale.")

    @property
    def _options(self) -> TemporalOptions:
        assert isinstance(self.cfg.options, TemporalOptions)
        return self.cfg.options

    def _contexts(self, x: Tensor) -> Tensor:
        """x as (B, T, D) on the device and in the dtype of the weights."""
        x_ND, lead = self._rows(x)
        if len(lead) != 2:
            raise StoreMismatch(
                f"{self.name} is a temporal SAE, which encodes whole contexts, and the activations have shape {tuple(x.shape)}.",
                "Pass (batch, tokens, d_in) in Python; steps that read single tokens do not work with it.",
            )
        return x_ND.reshape(*lead, self.cfg.d_in)

    def _encode(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Novel and predicted codes, each (B, T, F)."""
        if self.cfg.normalize_activations == _SCALAR:
            x_BTD = x_BTD * self._options.activation_normalization_factor
        r_BTD = self._centre(x_BTD)
        W_FD = self.W_dec if self._options.tied_weights else self.get_parameter("W_enc").T
        lam = 1 / (4 * self.cfg.d_in)
        predicted_BTF = x_BTD.new_zeros(*x_BTD.shape[:2], self.cfg.n_latents)
        for layer in range(self._options.n_attn_layers):
            z_BTF = linear(r_BTD * lam, W_FD).relu()
            z_pred_BTF = self._attend(layer, z_BTF).relu()
            out_BTD = z_pred_BTF @ self.W_dec
            norm_BT1 = out_BTD.norm(dim=-1, keepdim=True) + _EPS
            share_BT1 = (out_BTD * r_BTD).sum(-1, keepdim=True) / norm_BT1.square()
            predicted_BTF = predicted_BTF + z_pred_BTF * share_BT1
            r_BTD = r_BTD - share_BT1 * out_BTD
        novel_BTF = linear(r_BTD * lam, W_FD).relu()
        if self._options.sae_diff_type == "topk" and self._options.kval_topk is not None:
            kept = novel_BTF.detach().topk(self._options.kval_topk, dim=-1).indices
            novel_BTF = torch.zeros_like(novel_BTF).scatter(-1, kept, novel_BTF.gather(-1, kept))
        return novel_BTF, predicted_BTF

    def _attend(self, layer: int, z_BTF: Tensor) -> Tensor:
        """What attention to the codes of earlier tokens gives, (B, T, F)."""
        before_BTF = torch.cat([torch.zeros_like(z_BTF[:, :1]), z_BTF[:, :-1]], 1)
        heads = self._options.n_heads

        def projected(name: str, rows: Tensor) -> Tensor:
            place = f"attn_layers.{layer}.{name}"
            return linear(rows, self.get_parameter(f"{place}.weight"), self.get_parameter(f"{place}.bias"))

        q, k, v = (
            projected(name, rows).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name, rows in (("q_target", z_BTF), ("k_ctx", before_BTF), ("v_ctx", before_BTF))
        )
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return projected("c_proj", mixed.transpose(1, 2).flatten(2))
