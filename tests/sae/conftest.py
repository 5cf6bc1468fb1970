"""Random SAEs, and a float64 oracle of every architecture: the formulas of the papers, without code of saekit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saekit.plugins import resolve
from saekit.sae import ARCHITECTURES, SAE, SAEConfig
from tests.kit.saes import placed

Array = NDArray[np.float64]


def _normalize(x: Array, how: str) -> tuple[Array, Array | float, Array | float]:
    if how == "layer_norm":
        mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1)
        return (x - mean) / (std + 1e-5), mean, std
    if how == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
        return x / scale, 0.0, scale
    return x, 0.0, 1.0


class Oracle:
    """Dense float64 encode and forward of an SAE on rows (N, D), with the margin of its decisions."""

    def __init__(self, sae: SAE, x: torch.Tensor) -> None:
        cfg, activation = sae.cfg, ARCHITECTURES[sae.cfg.architecture].activation
        w: dict[str, Array] = {name: tensor.double().numpy() for name, tensor in sae.state_dict().items()}
        raw = x.detach().double().numpy()
        rows, shift, scale = _normalize(raw, cfg.normalize_activations)
        pre = (rows - w["b_dec"] if cfg.apply_b_dec_to_input else rows) @ w["W_enc"]
        self.margin = np.inf
        if activation == "gated":
            gate = pre + w["b_gate"]
            self.acts = (gate > 0) * np.maximum(pre * np.exp(w["r_mag"]) + w["b_mag"], 0)
            self.margin = np.abs(gate).min(initial=np.inf)
        else:
            pre = pre + w["b_enc"]
        if activation == "relu":
            self.acts = np.maximum(pre, 0)
        if activation == "jumprelu":
            self.acts = np.maximum(pre, 0) * (pre > w["threshold"])
            self.margin = np.abs(pre - w["threshold"]).min(initial=np.inf)
        if activation in ("topk", "abstopk"):
            rank_by = np.abs(pre) if activation == "abstopk" else pre
            k = int(cfg.k or 0)
            order = np.argsort(-rank_by, axis=-1)
            kept = np.zeros(pre.shape, bool)
            np.put_along_axis(kept, order[:, :k], True, axis=-1)
            self.acts = np.where(kept, pre if activation == "abstopk" else np.maximum(pre, 0), 0)
            if k < pre.shape[-1]:
                ranked = np.take_along_axis(rank_by, order, axis=-1)
                self.margin = (ranked[:, k - 1] - ranked[:, k]).min(initial=np.inf)
        self.latents_only = self.acts @ w["W_dec"] + w["b_dec"]
        self.out = self.latents_only + raw @ w["W_skip"].T if "W_skip" in w else self.latents_only
        if not cfg.transcodes:
            self.out = self.out * scale + shift


def _random_sae(architecture: str, d_in: int, n_latents: int, *, seed: int = 0, dtype: str = "float32", **cfg: Any) -> SAE:
    """Random weights of realistic size: pre-activations, thresholds and biases are of order 1."""
    row = ARCHITECTURES[architecture]
    if row.activation in ("topk", "abstopk"):
        cfg.setdefault("k", max(1, n_latents // 4))
    if row.kind.transcodes:
        cfg.setdefault("d_out", d_in + 3)
    config = SAEConfig(architecture, d_in=d_in, n_latents=n_latents, dtype=dtype, **placed(cfg))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in config.shapes().items():
        tensors[name] = torch.randn(shape, generator=generator) * {"W_enc": d_in**-0.5, "W_skip": d_in**-0.5}.get(name, 0.5)
    if "threshold" in tensors:
        tensors["threshold"].abs_()
    sae: SAE = resolve(config.row.module)(config, tensors)
    return sae


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture(scope="session")
def random_sae() -> Callable[..., SAE]:
    return _random_sae
