"""The numbers that are trained, in the scaled units of training, and how they become an SAE in the units of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from saekit.sae import SAE, SAEConfig
from trainers.statistics import Statistics


@dataclass
class Parameters:
    """Weights of a dictionary with F latents; both matrices have one row per latent, so that a latent is one piece of memory."""

    W_enc_FD: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor

    @classmethod
    def start(cls, n_latents: int, data: Statistics, seed: int, dtype: torch.dtype, device: str) -> Parameters:
        """Random unit decoder rows, the encoder their transpose, b_dec the centre of the data (arXiv 2406.04093, A.1)."""
        generator = torch.Generator().manual_seed(seed)
        W_dec_FD = torch.randn(n_latents, len(data.centre_D), generator=generator)
        W_dec_FD /= W_dec_FD.norm(dim=1, keepdim=True)
        start = cls(W_dec_FD.clone(), torch.zeros(n_latents), W_dec_FD, data.centre_D.clone())
        return start.map(lambda tensor: tensor.to(device, dtype))

    def named(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Parameters:
        """Parameters made of every tensor changed."""
        return Parameters(**{name: change(tensor) for name, tensor in self.named().items()})

    def to_sae(self, cfg: SAEConfig, scale: float) -> SAE:
        """An SAE on the CPU that reads activations as they are: the input scale is folded into its weights."""
        copy: dict[str, Any] = self.map(lambda tensor: tensor.detach().to("cpu", copy=True)).named()
        tensors = {"W_enc": copy["W_enc_FD"].T, "b_enc": copy["b_enc_F"], "W_dec": copy["W_dec_FD"], "b_dec": copy["b_dec_D"]}
        return SAE(cfg, tensors).fold_scale(scale)
