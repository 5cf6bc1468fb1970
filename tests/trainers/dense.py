"""The formulas of arXiv 2406.04093 written down densely in float64, for autograd: the oracle of every sparse step."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.parameters import Parameters
from trainers.statistics import Statistics


def random_parameters(F: int, D: int, seed: int = 0) -> Parameters:
    """Unit decoder rows and an encoder that is not quite their transpose, all biases in use."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, D, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    W_enc = W_dec + 0.3 * torch.randn(F, D, generator=generator) / D**0.5
    b_enc, b_dec = (0.1 * torch.randn(n, generator=generator) for n in (F, D))
    return Parameters(W_enc_FD=W_enc, b_enc_F=b_enc, W_dec_FE=W_dec, b_dec_E=b_dec)


def statistics(D: int, variance: float) -> Statistics:
    return Statistics(1.0, torch.zeros(D), variance)


def topk_mask(pre: Tensor, k: int) -> Tensor:
    return torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1)


def topk_loss(p: Parameters, x: Tensor, k: int, variance: float, dead: Tensor, aux_k: int, coefficient: float) -> Tensor:
    pre = (x - p.b_dec_E) @ p.W_enc_FD.T + p.b_enc_F
    x_hat = (torch.relu(pre) * topk_mask(pre, k)) @ p.W_dec_FE + p.b_dec_E
    loss = (x - x_hat).square().sum(1).mean() / variance
    if len(dead) and coefficient:
        error = (x - x_hat).detach()
        is_dead = torch.zeros(len(p.b_enc_F), dtype=torch.bool)
        is_dead[dead] = True
        dead_pre = pre.masked_fill(~is_dead, -torch.inf)
        keep = topk_mask(dead_pre, min(aux_k, len(dead)))
        error_hat = torch.where(keep > 0, torch.relu(pre), 0) @ p.W_dec_FE
        loss = loss + coefficient * (error_hat - error).square().sum() / (error - error.mean(0)).square().sum()
    return loss


def clear_rows(p: Parameters, x: Tensor, k: int, dead: Tensor, aux_k: int) -> Tensor:
    """The rows of x whose selections float32 rounding cannot change."""
    pre = (x - p.b_dec_E).double() @ p.W_enc_FD.double().T + p.b_enc_F.double()

    def gap(pre: Tensor, k: int) -> Tensor:
        if not 0 < k < pre.shape[1]:
            return torch.ones(len(pre))
        ordered = pre.sort(1, descending=True).values
        return ordered[:, k - 1] - ordered[:, k]

    return x[(gap(pre, k) > 1e-5) & (gap(pre[:, dead], min(aux_k, len(dead))) > 1e-5) & (pre.abs().min(1).values > 1e-6)]


def gradient(p: Parameters, *arguments: object) -> tuple[float, Parameters]:
    """Loss and float64 gradient of :func:`topk_loss`."""
    leaves = p.map(lambda tensor: tensor.detach().double().requires_grad_())
    x, *rest = arguments
    loss = topk_loss(leaves, x.double(), *rest)  # type: ignore[attr-defined,arg-type]
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), Parameters(zip(leaves, grads))
