"""What tells one model from another, whatever its dtype, device or folder."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saekit.lm.offload import present

if TYPE_CHECKING:
    from saekit.lm.model import LanguageModel

_ESSENTIALS = (
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "sliding_window",
)
_PER_TENSOR = 64


def model_sha256(lm: LanguageModel) -> str:
    """Hash of the sizes that matter, the parameters' names and shapes, and the signs of a sample of each.

    Signs, because they are the one thing that conversion between floating-point types keeps: two trainings differ in half of
    them, and even slight fine-tuning turns some.
    """
    digest = hashlib.sha256()
    sizes = {"type": lm.config.model_type, "heads": [lm.n_heads, lm.n_kv_heads, lm.d_head], "vocab": lm.vocab_size}
    essentials = {key: getattr(lm.config, key) for key in _ESSENTIALS if getattr(lm.config, key, None) is not None}
    digest.update(json.dumps([sizes, essentials], sort_keys=True, default=str).encode())
    for prefix, module in lm.model.named_modules():
        own = list(module.named_parameters(recurse=False))
        for name, parameter in own:
            digest.update(f"{prefix}.{name} {tuple(parameter.shape)}".encode())
            digest.update(_signs(present(module, name)))
    return digest.hexdigest()


def _signs(weight: Tensor) -> bytes:
    flat = weight.detach().reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, min(_PER_TENSOR, flat.numel()), dtype=torch.float64).long()
    return bytes((flat[index.to(flat.device)] > 0).to("cpu", torch.uint8).tolist())
