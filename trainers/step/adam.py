"""Adam, with equal results in the dense step and in the sparse step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.settings.config import TrainConfig
from trainers.step.parameters import Parameters


@dataclass
class Adam:
    """State of Adam (arXiv 1412.6980, algorithm 1): the running mean and mean square of every gradient."""

    mean: Parameters
    square: Parameters
    beta1: float
    beta2: float
    eps: float
    step: int = 0

    @classmethod
    def start(cls, p: Parameters, config: TrainConfig) -> Adam:
        assert config.beta2 is not None
        return cls(p.map(torch.zeros_like), p.map(torch.zeros_like), config.beta1, config.beta2, config.adam_eps)

    def constants(self, lr: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """(beta1, beta2, lr / bias correction 1, 1 / sqrt(bias correction 2), eps) of the current step, for the kernels."""
        corrections = 1 - self.beta1**self.step, 1 - self.beta2**self.step
        return np.array([self.beta1, self.beta2, lr / corrections[0], corrections[1] ** -0.5, self.eps], np.float32)

    @torch.no_grad()
    def move(self, p: Parameters, name: str, g: Tensor, lr: float) -> None:
        """Change one parameter by its gradient, in the current step."""
        _, _, rate, correction, _ = self.constants(lr).tolist()
        mean, square = self.mean[name], self.square[name]
        mean.lerp_(g, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        p[name].addcdiv_(mean, square.sqrt().mul_(correction).add_(self.eps), value=-rate)
