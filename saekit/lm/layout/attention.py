"""Attention with the operations of transformers' own, for models whose attention function can be chosen (AttentionInterface)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionCall(NamedTuple):
    """What an attention function is given, besides values.

    Attributes:
        query: (B, H, Q, d), after its norm and position embedding.
        key: (B, Hkv, K, d), likewise.
        mask: boolean, or added to the scores; None is causal.
        scaling: factor of the scores; None is 1 / sqrt(d).
        softcap: the scores are soft-capped by it.
        sinks_H: a score of each head that takes part in the softmax and attends to nothing (gpt-oss): with sinks, a row sums to 1
            minus the sink's share.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None = None
    scaling: float | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def factor(self) -> float:
        """The factor of the scores."""
        return self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def scores(self) -> Tensor:
        """(B, H, Q, K) before the mask and after the soft cap."""
        key = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        scores = torch.matmul(self.query, key.transpose(2, 3)) * self.factor
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def pattern(self) -> Tensor:
        """(B, H, Q, K) the attention pattern, in the dtype of the query."""
        scores = _masked(self.scores(), self.mask)
        if self.sinks_H is None:
            return torch.softmax(scores, -1, dtype=torch.float32).to(self.query.dtype)
        sinks = self.sinks_H.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        return torch.softmax(torch.cat([scores, sinks], -1), -1, dtype=torch.float32)[..., :-1].to(self.query.dtype)


def attention_pattern(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The attention pattern (B, H, Q, K) of an :class:`AttentionCall` with these arguments."""
    return AttentionCall(query, key, mask, scaling, softcap, sinks_H).pattern()


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
