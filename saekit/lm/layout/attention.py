"""Attention with the operations of transformers' own, for models whose attention function can be chosen (AttentionInterface)."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_pattern(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The attention pattern (B, H, Q, K).

    Args:
        query: (B, H, Q, d).
        key: (B, Hkv, K, d).
        mask: boolean, or added to the scores; None is causal.
        scaling: factor of the scores; None is 1 / sqrt(d).
        softcap: the scores are soft-capped by it.
        sinks_H: a score of each head that takes part in the softmax and attends to nothing (gpt-oss): with sinks, a row sums to 1
            minus the sink's share.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _masked(scores, mask)
    if sinks_H is None:
        return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    sinks = sinks_H.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
    return torch.softmax(torch.cat([scores, sinks], -1), -1, dtype=torch.float32)[..., :-1].to(query.dtype)


def attended(pattern: Tensor, value: Tensor) -> Tensor:
    """What each head returns, (B, Q, H, d), for values (B, Hkv, K, d)."""
    value = value.repeat_interleave(pattern.shape[1] // value.shape[1], 1)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous()


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:  # transformers leaves out a mask that is only causal
        Q, K = scores.shape[-2:]
        mask = torch.ones(Q, K, dtype=torch.bool, device=scores.device).tril(K - Q)
    mask = mask[..., : scores.shape[-1]]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
