"""An SAE from the content of sae-lens files: tensors under their names here, and every scale folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekit.errors import SAEFormatError
from saekit.plugins import resolve
from saekit.sae import folding
from saekit.sae.config import DTYPES, SAEConfig
from saekit.sae.files import Content
from saekit.sae.format import config_from_dict


def assemble(content: Content) -> Any:
    """An SAE from sae-lens's configuration and tensors. Every scale that can be folded into the weights is folded.

    Raises:
        SAEFormatError: configuration and tensors disagree, or numbers are not finite.
    """
    raw, scale = content.raw, content.scale
    cfg = config_from_dict(raw, content.tensors)
    state, factor = _named_as_here(content, cfg)
    sae = resolve(cfg.row.module)(cfg, state)
    for name, tensor in sae.state_dict().items():
        # A threshold of infinity is a latent that is switched off.
        if not bool((~tensor.isnan() if name == "threshold" else tensor.isfinite()).all()):
            raise SAEFormatError(f"{name} holds numbers that are not finite.", "The run diverged or the file is damaged.")
    if factor is not None:
        sae.W_dec.mul_(factor[:, None])  # fine-tuned scales act on the codes when they are decoded
    if scale is not None:
        sae.fold_scale(scale)
    if raw.get("rescale_acts_by_decoder_norm"):
        folding.decoder_norm(sae)
    if content.whitening is not None:
        sae.fold_whitening(content.whitening)
    return sae


def _named_as_here(content: Content, cfg: SAEConfig) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors under the names of :meth:`SAEConfig.shapes`, and factors (F,) on the codes where the file has them."""
    raw, scale, dtype = content.raw, content.scale, DTYPES[cfg.dtype]
    for name, tensor in content.tensors.items():
        if not tensor.is_floating_point():
            raise SAEFormatError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not real numbers.")
    shapes = cfg.shapes()
    check_shapes(content.tensors, {name: shapes[name] for name in shapes if name in content.tensors})
    if "W_enc" in shapes and "W_enc" not in content.tensors:
        raise SAEFormatError("The tensors have no W_enc.", f"A {cfg.architecture} SAE needs {', '.join(shapes)}.")
    state = {name: tensor if name == "topk_threshold" else tensor.to(dtype) for name, tensor in content.tensors.items()}
    if "log_threshold" in state:  # JumpReLU checkpoints of sae-lens 5
        state["threshold"] = state.pop("log_threshold").exp()
    if "topk_threshold" in state:  # BatchTopK and Matryoshka checkpoints
        threshold = state.pop("topk_threshold")
        if threshold.numel() != 1:
            raise SAEFormatError(f"topk_threshold has shape {tuple(threshold.shape)}.", "It is one number.")
        # With rescale_acts_by_decoder_norm it is in units of h * |W_dec|, and folding the scale divides W_dec.
        unit = scale if scale and raw.get("rescale_acts_by_decoder_norm") else 1.0
        state["threshold"] = torch.full((cfg.n_latents,), threshold.item() / unit, dtype=dtype)
    factor = next((state.pop(key) for key in ("scaling_factor", "finetuning_scaling_factor") if key in state), None)
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return state, None
    if not raw.get("finetuning_scaling_factor"):
        raise SAEFormatError("There is a scaling_factor among the tensors that the configuration does not mention.")
    if factor.shape != (cfg.n_latents,) or not bool(factor.isfinite().all()):
        raise SAEFormatError(f"scaling_factor is not {cfg.n_latents} finite numbers.", "The file is damaged.")
    return state, factor


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
    """Check that tensors have the names and shapes of an architecture.

    Raises:
        SAEFormatError: a tensor is missing, unexpected, or of another shape.
    """
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or extra:
        parts = [f"{label} {', '.join(names)}" for label, names in (("missing", missing), ("unexpected", extra)) if names]
        raise SAEFormatError(
            f"The tensors do not make a {architecture} SAE: {'; '.join(parts)[:500]}.", f"It needs {', '.join(shapes)}."
        )
    check_shapes(tensors, shapes)


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise SAEFormatError(
                f"{name} has shape {tuple(tensors[name].shape)}, but the configuration says {shape}.",
                "The configuration belongs to another SAE, or d_in, d_sae or d_out in it is wrong.",
            )
