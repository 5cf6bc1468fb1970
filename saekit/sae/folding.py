"""Folding: a scale, a whitening or a norm that goes with an SAE becomes a part of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.errors import ConfigError, SAEFormatError
from saekit.sae.whitening import Whitening, fold

if TYPE_CHECKING:
    from saekit.sae.modules import SAE


@torch.no_grad()
def scale(sae: SAE, input_scale: float, output_scale: float | None) -> None:
    """See :meth:`saekit.sae.SAE.fold_scale`."""
    output_scale = input_scale if output_scale is None or not sae.cfg.transcodes else output_scale
    sae.W_enc.mul_(input_scale)
    sae.W_dec.div_(output_scale)
    sae.b_dec.div_(output_scale)
    if sae.cfg.row.skips:
        sae.get_parameter("W_skip").mul_(input_scale / output_scale)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.cfg.normalize_activations = "none"


@torch.no_grad()
def whitening(sae: SAE, changed: Whitening) -> None:
    """See :meth:`saekit.sae.SAE.fold_whitening`."""
    cfg = sae.cfg
    if cfg.transcodes or cfg.crosses or cfg.options is not None:
        raise ConfigError(f"Whitening cannot be folded into a {cfg.architecture}.", "Fold it into an SAE with an encoder matrix.")
    tensors = {name: tensor.to("cpu", torch.float64, copy=True) for name, tensor in sae.state_dict().items()}
    fold(tensors, cfg.activation_function, changed, changed, centres=cfg.apply_b_dec_to_input)
    for name, tensor in tensors.items():
        sae.get_parameter(name).copy_(tensor)
    if cfg.normalize_activations == "covariance_whitening":
        cfg.normalize_activations = "none"


@torch.no_grad()
def decoder_norm(sae: SAE) -> None:
    """Fold |W_dec| of a file that selects and reports codes as `h * |W_dec|` and decodes them with unit rows.

    Raises:
        SAEFormatError: the architecture has no b_enc.
    """
    if "b_enc" not in sae.cfg.activation_function.parameters:
        raise SAEFormatError(f"rescale_acts_by_decoder_norm is not supported for {sae.cfg.architecture}.")
    norm_F = sae.W_dec.float().norm(dim=-1) if sae.dtype.itemsize < 4 else sae.W_dec.norm(dim=-1)
    sae.W_enc.copy_(sae.W_enc * norm_F)
    sae.get_parameter("b_enc").copy_(sae.get_parameter("b_enc") * norm_F)
    sae.W_dec.copy_(sae.W_dec / norm_F.where(norm_F > 0, 1.0)[:, None])
