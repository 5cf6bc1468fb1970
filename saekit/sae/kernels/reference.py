"""The torch versions: differentiable, on any device, of any floating dtype. The other kernels are tested against these."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 23  # of a chunk of (rows, F) pre-activations: 32 MiB in float32


def topk(pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values_BK, indices_BK = pre_BF.topk(k, dim=-1, sorted=False)
    return values_BK, indices_BK


def gather_decode(
    values_BK: Tensor, indices_BK: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor | None, start_B1: Tensor | None = None
) -> Tensor:
    n_rows = values_BK.shape[0] if start_B1 is None else len(start_B1) - 1
    if values_BK.numel() == 0:
        # The sum over no entry is 0, and keeps the graph: where nothing fires, the gradient is 0.
        out_BD = W_dec_FD.new_zeros(n_rows, W_dec_FD.shape[1]) + values_BK.sum()
    else:
        start_B = None if start_B1 is None else start_B1[:-1]
        out_BD = torch.nn.functional.embedding_bag(indices_BK, W_dec_FD, start_B, per_sample_weights=values_BK, mode="sum")
    return out_BD if b_dec_D is None else out_BD + b_dec_D


def encode_topk(x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    rows = max(1, CHUNK_NUMBERS // W_enc_FD.shape[0])
    parts = [_encode_chunk(x_RD, W_enc_FD, b_enc_F, k) for x_RD in x_BD.split(rows)]
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def _encode_chunk(x_RD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    values_RK, indices_RK = topk(torch.nn.functional.linear(x_RD, W_enc_FD, b_enc_F), k)
    return torch.relu(values_RK), indices_RK


def encode_abstopk(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, k: int, chunk_numbers: int = CHUNK_NUMBERS
) -> tuple[Tensor, Tensor]:
    values, indices = [], []
    for x_RD in x_BD.split(max(1, chunk_numbers // W_enc_FD.shape[0])):
        pre_RF = torch.nn.functional.linear(x_RD, W_enc_FD, b_enc_F)
        indices.append(topk(pre_RF.detach().abs(), k)[1])
        values.append(pre_RF.gather(1, indices[-1]))
    return torch.cat(values), torch.cat(indices)


def pre_activations(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, indices_BK: Tensor, start_B1: Tensor | None
) -> Tensor:
    counts_B = torch.full((len(x_BD),), indices_BK.shape[-1]) if start_B1 is None else start_B1.diff()
    x_ND = x_BD.repeat_interleave(counts_B.to(x_BD.device), dim=0)
    indices_N = indices_BK.flatten()
    pre_N = (x_ND * W_enc_FD[indices_N]).sum(1)
    return (pre_N if b_enc_F is None else pre_N + b_enc_F[indices_N]).view(indices_BK.shape)


def encode_above(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, floor_F: Tensor, chunk_numbers: int = CHUNK_NUMBERS
) -> tuple[Tensor, Tensor, Tensor]:
    rows = max(1, chunk_numbers // W_enc_FD.shape[0])
    parts = [_above_chunk(x_RD, W_enc_FD, b_enc_F, floor_F) for x_RD in x_BD.split(rows)]
    values_N, latents_N, counts_B = (torch.cat([part[i] for part in parts]) for i in range(3))
    return values_N, latents_N, torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])


def _above_chunk(x_RD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor | None, floor_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pre_RF = torch.nn.functional.linear(x_RD, W_enc_FD, b_enc_F)
    above_RF = pre_RF.detach() > floor_F
    row_N, latents_N = above_RF.nonzero(as_tuple=True)
    return pre_RF[row_N, latents_N], latents_N, above_RF.sum(1)
