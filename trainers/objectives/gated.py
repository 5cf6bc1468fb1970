"""Gated (arXiv 2404.16014): one pre-activation decides whether a latent fires, and a rescaled one gives its magnitude.

    h = W_enc (x - b_dec),   pi = h + b_gate,   f = 1[pi > 0] * ReLU(exp(r_mag) h + b_mag),   x_hat = W_dec^T f + b_dec
    L = mean_b ||x - x_hat||^2 / Var(x) + lambda mean_b sum_j ReLU(pi_j) / sqrt(Var(x))
        + mean_b ||x - sg(W_dec)^T ReLU(pi) - sg(b_dec)||^2 / Var(x)

with unit decoder rows; sg stops the gradient. The first term gives the gates no gradient, so the last term trains them. It uses a
frozen copy of the decoder (and of the skip connection of a transcoder). Otherwise decoder rows would be fitted to the gates
instead of the magnitudes.

The parameter b_enc holds b_gate.

There is no file format for gated transcoders and crosscoders. They are stored as JumpReLU, which is equivalent because the gate
and the magnitude are functions of the same h: with u = exp(r_mag) h + b_mag, f = u * 1[u > max(0, b_mag - exp(r_mag) b_gate)].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekit.sae.code import Code
from trainers.objectives.base import Now, Outcome
from trainers.objectives.penalty import Penalised
from trainers.step.parameters import Parameters
from trainers.step.sparse_gradient import SparseGradient


class Gated(Penalised):
    """The objective of Gated SAEs; formulas in the docstring of the module."""

    def start(self) -> Parameters:
        p = super().start()
        return Parameters(p, b_enc_F=p.b_enc_F - self.start_cut, b_mag_F=p.b_enc_F, r_mag_F=torch.zeros_like(p.b_enc_F))

    def gates(self, p: Parameters, x_BD: Tensor, **how: Any) -> Code:
        """The code ReLU(pi)."""
        zero = torch.zeros_like(p.b_enc_F[:1])
        return self.encoder.above(p, x_BD, zero, self.expected, **how)

    def loss(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> Outcome:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        gates = self.gates(p, x_BD, backend="torch")
        latents_N = gates.latents_N
        h_N = gates.values_N - p.b_enc_F[latents_N]
        code = gates.with_values(torch.relu(h_N * p.r_mag_F.exp()[latents_N] + p.b_mag_F[latents_N]))
        y_hat_BE = self.decode(p, code)
        squares = (y_hat_BE - y_BE).square().sum()
        by_gates = (self.decode(p.map(Tensor.detach), gates) - y_BE.detach()).square().sum()
        penalty = self.per_gate(x_BD, now) * self.group.whole(gates.values_N.sum())
        loss = self.fit(x_BD, y_hat_BE, squares, gates=by_gates) + penalty
        loss = loss + self.auxk.loss(self.lifted(p), x_BD, y_BE - y_hat_BE, now.dead)
        return Outcome(loss, squares.detach(), code.detach())

    def gradient(self, p: Parameters, x_BD: Tensor, y_BE: Tensor, now: Now) -> tuple[Outcome, SparseGradient]:
        x_BD, y_BE = self.sides(p, x_BD, y_BE)
        gates = self.gates(p, x_BD, **self.config.encoding)
        latents_N, n_latents = gates.latents_N, len(p.b_enc_F)
        factor_N = p.r_mag_F.exp()[latents_N]
        scaled_N = (gates.values_N - p.b_enc_F[latents_N]) * factor_N
        code = gates.with_values(torch.relu(scaled_N + p.b_mag_F[latents_N]))
        scale, per_gate = 2 * self.weight(x_BD), self.per_gate(x_BD, now)
        error_BE, grads_N, squares = self.decode_gradient(p, code, y_BE, scale)
        _, gate_grads_N, by_gates = self.decode_gradient(p, gates, y_BE, scale)
        magnitude_N = grads_N * (code.values_N > 0)
        through_N = magnitude_N * factor_N  # gradient at h through the magnitude
        gradient = self.sparse_gradient(
            p,
            x_BD,
            error_BE,
            b_enc_F=-code.sums(n_latents, through_N),  # h = pi - b_gate, and the magnitude does not depend on b_gate
            b_mag_F=code.sums(n_latents, magnitude_N),
            r_mag_F=code.sums(n_latents, magnitude_N * scaled_N),
        )
        gradient.add(code, through_N + gate_grads_N + per_gate, error_BE)
        loss = scale / 2 * (squares + by_gates) + per_gate * float(self.group.whole(gates.values_N.sum()))
        loss += self.auxk.add_gradient(gradient, self.lifted(p), error_BE / -scale, now.dead)
        return Outcome(loss, squares, code), gradient

    def per_gate(self, x_BD: Tensor, now: Now) -> float:
        """Weight of the penalty for each unit of ReLU(pi) on one token of the batch."""
        return self.penalty(now) / (len(x_BD) * self.writes.variance**0.5)

    def parameters_of(self, tensors: dict[str, Tensor]) -> Parameters:
        if "threshold" in tensors:  # a JumpReLU is a gated SAE whose magnitudes are its pre-activations
            b_enc_F, threshold_F = tensors.pop("b_enc"), tensors.pop("threshold").clamp(0, 1e6)
            tensors |= {"b_gate": b_enc_F - threshold_F, "b_mag": b_enc_F, "r_mag": torch.zeros_like(b_enc_F)}
        tensors["b_enc"] = tensors.pop("b_gate")
        p = super().parameters_of(tensors)
        return Parameters(p, b_mag_F=tensors.pop("b_mag"), r_mag_F=tensors.pop("r_mag"))

    def tensors(self, p: Parameters) -> dict[str, Tensor]:
        if not self.centres:
            factor_F = p.r_mag_F.exp()
            as_jumprelu = Parameters(p, W_enc_FD=p.W_enc_FD * factor_F[:, None], b_enc_F=p.b_mag_F)
            return super().tensors(as_jumprelu) | {"threshold": torch.relu(p.b_mag_F - factor_F * p.b_enc_F)}
        own = {"b_gate": p.b_enc_F, "b_mag": p.b_mag_F, "r_mag": p.r_mag_F}
        return {name: tensor for name, tensor in super().tensors(p).items() if name != "b_enc"} | own
