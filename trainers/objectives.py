"""What an architecture tells the loop, and the table of architectures that can be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekit.sae import SAE, SAEConfig
from trainers.auxk import AuxK
from trainers.code import Code
from trainers.config import TrainConfig
from trainers.parameters import Parameters
from trainers.sparse import SparseGradient
from trainers.statistics import Statistics

# Architecture -> the class in its own file. A new one is a file and a line.
OBJECTIVES: Mapping[str, str] = {
    "topk": "trainers.topk:TopK",
    "batchtopk": "trainers.batchtopk:BatchTopK",
    "matryoshka": "trainers.matryoshka:Matryoshka",
    "jumprelu": "trainers.jumprelu:JumpReLU",
    "gated": "trainers.gated:Gated",
    "standard": "trainers.standard:Standard",
}


class Now(NamedTuple):
    """Where a run stands.

    Attributes:
        share: of the run that is done, from 0 to 1.
        dead: int64 indices of the latents that are dead.
    """

    share: float
    dead: Tensor


class Outcome(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: what is minimised; a differentiable scalar from `loss`, a number from `gradient`.
        squares: sum over the batch of the squared error of the prediction.
        code: the latents that fired, without a gradient; one or several rows for each token.
    """

    loss: Tensor | float
    squares: Tensor | float
    code: Code


class Objective(ABC):
    """One architecture's loss, how its parameters start, and what SAE they make.

    What is read is `x_BD` and what is to be predicted `y_BE`, both scaled; for an SAE they are the same tensor. `loss` is
    differentiable and runs anywhere; `gradient` gives the same loss and its gradient by hand, on a CPU in float32, in the sparse
    form that :class:`trainers.sparse.SparseGradient` spends. Neither changes anything: what an objective learns from a step, it
    notes in :meth:`observe`.

    Args:
        config: resolved settings.
        reads, writes: facts about x and y.

    Attributes:
        transcodes: whether it can predict another site than the one it reads.
        unit_rows: keep decoder rows at norm 1.
        state: tensors that change as training goes on and are no parameters; checkpoints hold them, and going on from one
            copies into them, so :meth:`observe` changes them in place.
    """

    transcodes = False
    unit_rows = True

    def __init__(self, config: TrainConfig, reads: Statistics, writes: Statistics) -> None:
        assert config.aux_k is not None
        self.config, self.reads, self.writes = config, reads, writes
        self.auxk = AuxK(config.aux_k, config.aux_coefficient, config.screen)
        self.state: dict[str, Tensor] = {}

    def start(self) -> Parameters:
        """Float32 parameters on the CPU: random unit decoder rows, the encoder their transpose, b_dec the centre of the data
        (arXiv 2406.04093, A.1)."""
        n_latents, width = self.config.n_latents, len(self.writes.centre_D)
        W_dec_FE = torch.randn(n_latents, width, generator=torch.Generator().manual_seed(self.config.seed))
        W_dec_FE /= W_dec_FE.norm(dim=1, keepdim=True)
        return Parameters(
            W_enc_FD=W_dec_FE.clone(), b_enc_F=torch.zeros(n_latents), W_dec_FE=W_dec_FE, b_dec_E=self.writes.centre_D.clone()
        )

    @abstractmethod
    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome: ...

    @abstractmethod
    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]: ...

    def observe(self, outcome: Outcome, now: Now) -> None:  # noqa: B027
        """Take note of a step that was done."""

    def sae(self, p: Parameters, **facts: Any) -> SAE:
        """What the parameters make: an SAE on the CPU that reads activations as they are, with their scale folded in.

        Args:
            facts: of :class:`saekit.sae.SAEConfig`: site, model_name...
        """
        cfg = SAEConfig(
            architecture=self.config.arch,
            d_in=len(self.reads.centre_D),
            d_out=len(self.writes.centre_D),
            n_latents=self.config.n_latents,
            k=self.config.l0,
            dtype=self.config.dtype,
            **facts,
        )
        copy = p.map(lambda tensor: tensor.detach().to("cpu", copy=True))
        return SAE(cfg, self.tensors(copy)).fold_scale(self.reads.scale, self.writes.scale)

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        """Parameters under sae-lens's names, in the units of training."""
        return {"W_enc": p.W_enc_FD.T, "b_enc": p.b_enc_F, "W_dec": p.W_dec_FE, "b_dec": p.b_dec_E}

    def weight(self, x_BD: Tensor) -> float:
        """Of a squared error, so that a batch's sum is its FVU: the variance is that of the data."""
        return 1 / (len(x_BD) * self.writes.variance)


def objective_class(arch: str) -> type[Objective]:
    """The objective of an architecture."""
    module, name = OBJECTIVES[arch].split(":")
    found: type[Objective] = getattr(import_module(module), name)
    return found


def objective(config: TrainConfig, reads: Statistics, writes: Statistics) -> Objective:
    """The objective of a configuration."""
    return objective_class(config.arch)(config, reads, writes)
