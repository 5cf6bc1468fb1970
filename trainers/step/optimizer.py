"""One step of Adam on all parameters, from a dense or a sparse gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.step.adam import Adam
from trainers.step.distributed import ALONE, Group
from trainers.step.kernels import sparse_kernels
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


@dataclass
class Optimizer:
    """Adam on the parameters of a dictionary.

    Attributes:
        p: the parameters, which :meth:`step` changes in place.
        adam: the state of Adam.
        unit_rows: keep decoder rows at norm 1: the component of the gradient along a row is removed before the step, and the row
            is normalised after it.
        group: the processes whose gradients add up to the gradient of the batch.
    """

    p: Parameters
    adam: Adam
    unit_rows: bool
    group: Group = ALONE

    def step(self, gradient: Parameters | SparseGradient, lr: float) -> None:
        """One step with learning rate `lr`, given the gradient of the rows that this process has."""
        self.adam.step += 1
        if isinstance(gradient, SparseGradient):
            self._sparse(gradient.gathered(), lr)
        else:
            self._dense(self.group.reduce(gradient), lr)

    @torch.no_grad()
    def _dense(self, gradient: Parameters, lr: float) -> None:
        p = self.p
        if self.unit_rows:
            along_F1 = (gradient.W_dec_FE * p.W_dec_FE).sum(1, keepdim=True)
            gradient = Parameters(gradient, W_dec_FE=gradient.W_dec_FE - along_F1 * p.W_dec_FE)
        for name in p:
            self.adam.move(p, name, gradient[name], lr)
        if self.unit_rows:
            norm_F1 = p.W_dec_FE.norm(dim=1, keepdim=True)
            p.W_dec_FE /= norm_F1.where(norm_F1 > 0, 1.0)

    def _sparse(self, gradient: SparseGradient, lr: float) -> None:
        kernels = sparse_kernels(gradient.kernels)
        sums_F, through_input_D = kernels.update_latents(gradient, self.p, self.adam, lr, unit_rows=self.unit_rows)
        others = gradient.group.reduce(Parameters(gradient.others(sums_F, through_input_D)))
        for name, each in others.items():
            kernels.move(self.p, self.adam, name, each, lr)
