"""TopK (arXiv 2406.04093): the k largest latents of a token reconstruct it.

    f = ReLU(TopK(W_enc (x - b_dec) + b_enc)),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + AuxK

with unit decoder rows. Var(x) is a constant of the run, so the first term is a batch's FVU.

There is no file format for TopK transcoders and crosscoders. They are stored as a JumpReLU with a threshold above which, on
average, k latents are active.

Decoder rows of a crosscoder may have any norm, and its latents are ranked by f_j times the sum over sites of the norms of
W_dec[j] (arXiv 2504.02922). A cross-layer transcoder, whose decoder starts at 0, ranks them by f_j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.loop.data_scaling import DataScaling
from trainers.objectives.base import Now, Objective, Outcome
from trainers.objectives.batch_threshold import RunningThreshold, largest_of_batch, smallest
from trainers.settings.config import TrainConfig
from trainers.settings.schedule import latents_per_token
from trainers.step.distributed import ALONE, Group
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient

_SAMPLE = 32  # tokens of a batch on which a TopK transcoder's threshold is estimated


class TopK(Objective):
    """
    Attributes:
        across_tokens: whether latents are selected over a whole batch instead of for every token.
    """

    across_tokens = False
    splits = True

    def __init__(self, config: TrainConfig, reads: DataScaling, writes: DataScaling) -> None:
        super().__init__(config, reads, writes)
        self.weighs = self.kind.crosses and not self.kind.layered
        self.unit_rows = self.unit_rows and not self.weighs
        self.threshold = RunningThreshold(config.device) if self.across_tokens or not self.centres else None
        self.state = self.threshold.state if self.threshold else {}

    def encode(self, p: Parameters, x_BD: Tensor, now: Now, **how: Any) -> Code:
        """The code of a batch. Entries of 0 are inactive."""
        k = round(latents_per_token(self.config, now.share))
        sizes_F = self.sizes_F(p)
        ranked = _multiplied(p, sizes_F)
        values_BK, latents_BK = self.encoder.topk(ranked, x_BD, k, signed=self.signed, **how)
        return _divided(Code.of(self.group.largest(values_BK, k), latents_BK), sizes_F)

    def sizes_F(self, p: Parameters) -> Tensor | None:
        """(F,) factors on codes when latents are ranked; None for 1."""
        return self.sizes_FS(p).detach().sum(1) if self.weighs else None

    def of_batch(self, p: Parameters, x_BD: Tensor, now: Now, group: Group, **how: Any) -> Code:
        """The k * B largest latents of all B tokens, among the rows and latents of the processes of `group`."""
        assert self.threshold is not None
        k = latents_per_token(self.config, now.share)
        sizes_F = self.sizes_F(p)
        ranked = _multiplied(p, sizes_F)

        def above(x_BD: Tensor, floor: Tensor) -> Code:
            return self.encoder.above(ranked, x_BD, floor, k, **how)

        code = largest_of_batch(above, x_BD, round(k * group.n_rows(len(x_BD))), self.threshold.last, group)
        return _divided(code, sizes_F)

    def smallest(self, p: Parameters, code: Code, group: Group) -> Tensor | None:
        """The smallest activation in a code, times the factors of :meth:`sizes_F`."""
        sizes_F = self.sizes_F(p)
        return smallest(code if sizes_F is None else code.with_values(code.values_N * sizes_F[code.latents_N]), group)

    @torch.no_grad()
    def kept(self, p: Parameters, x_BD: Tensor, code: Code, now: Now) -> Tensor | None:
        """The smallest activation that a selection over the whole batch keeps; None if no threshold is needed."""
        if not self.threshold:
            return None
        group = ALONE if self.group.splits_rows else self.group  # the first rows of a batch are in one process
        return self.group.from_first_rows(self.smallest(p, self.of_batch(p, x_BD[:_SAMPLE], now, group), group))

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code = self.encode(p, x_BD, now, backend="torch")
        y_hat_BE = self.decode(p, code)
        squares = (y_hat_BE - y_BE).square().sum()
        loss = self.fit(x_BD, y_hat_BE, squares) + self.auxk.loss(p, x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach(), self.kept(p, x_BD, code, now))

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        code = self.encode(p, x_BD, now, **self.config.encoding)
        scale = 2 * self.weight(x_BD)
        error_BE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        gradient = self.sparse_gradient(p, x_BD, error_BE)
        gradient.add(code, grads_N.mul_(code.values_N != 0), error_BE)
        loss = scale / 2 * squares + self.auxk.add_gradient(gradient, p, error_BE / -scale, now.dead)
        return Outcome(loss, squares, code, self.kept(p, x_BD, code, now)), gradient

    def observe(self, outcome: Outcome, now: Now) -> None:
        if self.threshold and outcome.kept is not None:
            self.threshold.observe(outcome.kept)

    def metrics(self, now: Now) -> dict[str, float]:
        return {"threshold": self.threshold.value.item()} if self.threshold else {}

    def parameters_of(self, tensors: dict[str, Tensor]) -> Parameters:
        threshold_F = tensors.pop("threshold", None)  # of a JumpReLU: here the number of latents is fixed
        if self.threshold and threshold_F is not None:
            self.threshold.value.fill_(threshold_F.median().item())
        return super().parameters_of(tensors)

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        tensors = super().tensors(self.of_unit_size(p) if self.weighs else p)
        if self.threshold:
            tensors["threshold"] = torch.full_like(p.b_enc_F, self.threshold.value.item())
        return tensors


def _multiplied(p: Parameters, sizes_F: Tensor | None) -> Parameters:
    """Parameters whose codes are multiplied by `sizes_F`."""
    if sizes_F is None:
        return p
    return Parameters(p, W_enc_FD=p.W_enc_FD * sizes_F[:, None], b_enc_F=p.b_enc_F * sizes_F)


def _divided(code: Code, sizes_F: Tensor | None) -> Code:
    """The code divided by `sizes_F`."""
    if sizes_F is None:
        return code
    return code.with_values(code.values_N / sizes_F.where(sizes_F > 0, 1.0)[code.latents_N])
