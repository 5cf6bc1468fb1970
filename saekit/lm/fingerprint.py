"""Fingerprints of models, which do not depend on dtype, device or folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from saekit.lm.layout.layout import ModelLayout
from saekit.lm.layout.offload import present

ESSENTIALS = (
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Settings of a configuration, besides sizes, that change what weights mean."""
_SIGNS, _SAMPLE, _PROJECTIONS = 64, 4096, 8
# Relative changes of a tensor's size (root mean square) and of its projections that count as rounding. Rounding to bfloat16 moves
# a number by at most 1/256 of itself, so the size by less than that, and the projections by about 0.0016 of the size. An edit of
# 5 % moves the projections by 0.05; a factor of 1.01 moves the size by 0.01.
_SIZE, _DIRECTION = 0.006, 0.01
_UNDERFLOW = 1e-7  # float16 cannot represent smaller differences


def model_sha256(lm: ModelLayout) -> str:
    """Hash of the important sizes, of the names and shapes of all parameters, and of the signs of some of their numbers.

    Conversion between floating-point types keeps signs, and two trainings differ in half of them. Slight changes of the weights
    show in :func:`weights_text` only.
    """
    digest = hashlib.sha256()
    sizes = {"type": lm.config.model_type, "heads": [lm.n_heads, lm.n_kv_heads, lm.d_head], "vocab": lm.vocab_size}
    essentials = {key: getattr(lm.config, key) for key in ESSENTIALS if getattr(lm.config, key, None) is not None}
    digest.update(json.dumps([sizes, essentials], sort_keys=True, default=str).encode())
    for name, weight in _weights(lm):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(bytes((_sampled(weight, _SIGNS) > 0).to("cpu", torch.uint8).tolist()))
    return digest.hexdigest()


def weights_text(lm: ModelLayout) -> str:
    """The size of each parameter and eight projections of it, from up to 4096 evenly spaced numbers x_1 .. x_n.

    The size is s = sqrt(mean(x^2)). A projection is sum(r_i x_i) / (sqrt(n) s) in thousandths, with fixed random signs r_i. A
    change of the parameter moves the projections by about its size relative to s, whatever its direction (Johnson and
    Lindenstrauss 1984; signs: Achlioptas 2003).
    """
    parts = []
    for _, weight in _weights(lm):
        numbers_N = _sampled(weight, _SAMPLE).to("cpu", torch.float64).numpy()
        size = float(np.sqrt(np.mean(numbers_N**2))) if numbers_N.size else 0.0
        along = _signs()[:, : numbers_N.size] @ numbers_N / np.sqrt(max(numbers_N.size, 1))
        thousandths = [str(round(1000 * each / size)) if 0 < size < np.inf else "0" for each in along.tolist()]
        parts.append(" ".join([f"{size:.5g}", *thousandths]))
    return ";".join(parts)


def differs(here: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first of "model" (the structure), "tokenizer" and "weights" in which two fingerprints differ; None if all are equal.

    Rounding to half precision does not count as a difference in weights. Fingerprints of early versions have no "weights";
    weights are then not compared.
    """
    for what in ("model", "tokenizer"):
        if here.get(what) != now.get(what):
            return what
    return "weights" if "weights" in here and "weights" in now and not same_weights(here["weights"], now["weights"]) else None


def same_weights(here: str, now: str) -> bool:
    """Whether two results of :func:`weights_text` are of the same weights, up to the rounding of their types."""
    if here == now:
        return True
    try:
        tables = [[[float(number) for number in part.split()] for part in text.split(";")] for text in (here, now)]
    except ValueError:  # a damaged file
        return False
    shapes = [[len(row) for row in table] for table in tables]
    if shapes[0] != shapes[1] or len(set(shapes[0])) > 1 or not shapes[0][0]:
        return False
    left, right = (np.array(table) for table in tables)
    size = np.maximum(left[:, 0], right[:, 0])
    moved = left[:, 1:] * left[:, :1] / 1000 - right[:, 1:] * right[:, :1] / 1000
    same_size = np.abs(left[:, 0] - right[:, 0]) <= _SIZE * size + _UNDERFLOW
    same_direction = np.sqrt(np.mean(moved**2, axis=1)) <= _DIRECTION * size + _UNDERFLOW
    return bool(np.all(same_size & same_direction))


def _weights(lm: ModelLayout) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in lm.model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            yield f"{prefix}.{name}", present(module, name).detach()


def _sampled(weight: Tensor, n: int) -> Tensor:
    """Up to `n` evenly spaced numbers."""
    flat = weight.reshape(-1)
    if flat.numel() <= n:
        return flat
    return flat[torch.linspace(0, flat.numel() - 1, n, dtype=torch.float64).long().to(flat.device)]


@cache
def _signs() -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"saekit").digest(_PROJECTIONS * _SAMPLE // 8), np.uint8))
    return 2.0 * bits.reshape(_PROJECTIONS, _SAMPLE) - 1
