"""What tells one model from another, whatever its dtype, device or folder."""

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

_ESSENTIALS = (
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
_SIGNS, _SAMPLE, _PROJECTIONS = 64, 4096, 8
# Rounding to bfloat16 moves a number by at most 1/256 of itself: a tensor's size by less than that, however alike its numbers
# are, and its projections by about 0.0016 of its size. An edit of 5 % moves these by 0.05, a factor of 1.01 the size by 0.01.
_SIZE, _DIRECTION = 0.006, 0.01
_UNDERFLOW = 1e-7  # float16 keeps no smaller steps


def model_sha256(lm: ModelLayout) -> str:
    """Hash of the sizes that matter, the parameters' names and shapes, and the signs of a few of each.

    Signs, because they are the one thing that conversion between floating-point types keeps: two trainings differ in half of
    them. What slight changes leave as it is, :func:`weights_text` tells.
    """
    digest = hashlib.sha256()
    sizes = {"type": lm.config.model_type, "heads": [lm.n_heads, lm.n_kv_heads, lm.d_head], "vocab": lm.vocab_size}
    essentials = {key: getattr(lm.config, key) for key in _ESSENTIALS if getattr(lm.config, key, None) is not None}
    digest.update(json.dumps([sizes, essentials], sort_keys=True, default=str).encode())
    for name, weight in _weights(lm):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(bytes((_sampled(weight, _SIGNS) > 0).to("cpu", torch.uint8).tolist()))
    return digest.hexdigest()


def weights_text(lm: ModelLayout) -> str:
    """For each parameter the root mean square of up to 4096 of its numbers, evenly spaced, and eight projections of them.

    A projection is their sum under fixed random signs, over the square root of their number and over their root mean square, in
    thousandths: a change of the parameter moves it by about the change's relative size, whatever the direction (Johnson and
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
    """Which of "model" (its structure), "tokenizer" and "weights" two fingerprints differ in; None where they are of one model.

    Weights may differ by their rounding to half precision. Fingerprints of before they had "weights" are compared without.
    """
    for what in ("model", "tokenizer"):
        if here[what] != now[what]:
            return what
    return "weights" if "weights" in here and "weights" in now and not same_weights(here["weights"], now["weights"]) else None


def same_weights(here: str, now: str) -> bool:
    """Whether two :func:`weights_text` are of the same weights, up to the rounding of their types."""
    if here == now:
        return True
    tables = [[[float(number) for number in part.split()] for part in text.split(";")] for text in (here, now)]
    shapes = [[len(row) for row in table] for table in tables]
    if shapes[0] != shapes[1]:
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
    """Up to `n` numbers, evenly spaced."""
    flat = weight.reshape(-1)
    if flat.numel() <= n:
        return flat
    return flat[torch.linspace(0, flat.numel() - 1, n, dtype=torch.float64).long().to(flat.device)]


@cache
def _signs() -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"saekit").digest(_PROJECTIONS * _SAMPLE // 8), np.uint8))
    return 2.0 * bits.reshape(_PROJECTIONS, _SAMPLE) - 1
