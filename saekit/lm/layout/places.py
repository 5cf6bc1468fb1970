"""Where vectors lie in the tensors that modules return: how q, k and v of an unknown model are found."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn

from saekit.lm.layout.hook_points import TensorView
from saekit.lm.layout.trace import Call

_COSINE = 1 - 1e-3
_UNALIGNED = 1 << 13
"""Heads that begin at any number are searched for in tensors up to this width."""


def find_heads(calls: Iterable[Call], target_BTHd: Tensor, *, scaled: bool) -> tuple[Call, TensorView] | None:
    """The last of `calls` whose output holds the vectors `target_BTHd` head by head, and where.

    Args:
        scaled: each vector may be multiplied by a positive number.
    """
    for call in reversed(list(calls)):
        if (view := _view(call.returned, target_BTHd, scaled)) is not None:
            return call, view
    return None


def _view(returned: Tensor, target: Tensor, scaled: bool) -> TensorView | None:
    B, T, H, d = target.shape
    if not returned.is_floating_point():
        return None
    if returned.ndim == 4:
        for first in (False, True):
            view = TensorView(H, d, heads_first=first)
            got = view.get(returned, *returned.shape[:2])
            if got.shape[0] == B and got.shape[1] >= T and got.shape[2:] == (H, d) and same(got[:, :T], target, scaled):
                return view
        if returned.shape[1] != 1:
            return None
        returned = returned[:, 0]  # DeepSeek's projection of latents has room for heads
    if returned.ndim == 2 and returned.shape[0] % B == 0:
        returned = returned.unflatten(0, (B, -1))
    if returned.ndim != 3 or returned.shape[0] != B or returned.shape[1] < T or returned.shape[2] < d:
        return None
    returned = returned[:, :T]
    starts = _starts(returned[0, 0], target[0, 0])
    if starts is None:
        return None
    heads = tuple(dict.fromkeys(starts))  # a key-value head may have been repeated for each of its users
    whole = heads == tuple(range(0, returned.shape[2], d))
    view = TensorView(len(heads), d, () if whole else heads)
    got = view.get(returned, B, T)
    which = torch.tensor([heads.index(start) for start in starts])
    return view if same(got[:, :, which], target, scaled) else None


def _starts(x_N: Tensor, target_Hd: Tensor) -> list[int] | None:
    """Where in x the vectors of each head begin."""
    d = target_Hd.shape[1]
    for step in sorted({gcd(d, len(x_N)), 1}, reverse=True):
        if step == 1 < d and len(x_N) > _UNALIGNED:
            return None
        windows = torch.nn.functional.normalize(x_N.float().unfold(0, d, step), dim=1)
        cosines = torch.nn.functional.normalize(target_Hd.float(), dim=1) @ windows.T
        best, where = cosines.max(1)
        if bool((best > _COSINE).all()):
            return [int(n) * step for n in where]
    return None


def same(left: Tensor, right: Tensor, scaled: bool = False) -> bool:
    """Whether two tensors are equal up to rounding, or (with `scaled`) their last dimensions are up to positive factors."""
    if left.shape != right.shape:
        return False
    left, right = left.float(), right.float().to(left.device)
    if scaled:
        return bool((torch.cosine_similarity(left, right, dim=-1) > _COSINE).all())
    return float((left - right).abs().max()) <= 1e-2 * float(right.abs().max())


def fused_views(v: TensorView, width: int, n_heads: int) -> tuple[TensorView, TensorView] | None:
    """Where q and k lie in a fused projection of `width` numbers, given where v lies.

    In each repeating unit of the layout, what is not v is q and then k. This covers q|k|v side by side, [q, k, v] head by head or
    group by group, and GPT-J's [q, v, k] for each slice of the heads.
    """
    d, starts = v.d_head, list(v.starts)
    runs = 1 + sum(b - a != d for a, b in pairwise(starts))
    if width % runs or len(starts) % runs or width != (n_heads + 2 * len(starts)) * d:
        return None
    unit, n_q, n_k = width // runs, n_heads // runs, len(starts) // runs
    free = [[start for start in range(run * unit, (run + 1) * unit, d) if start not in starts] for run in range(runs)]
    if n_heads % runs or any(len(each) != n_q + n_k for each in free):
        return None
    q, k = ([start for each in free for start in each[part]] for part in (slice(n_q), slice(n_q, None)))
    return TensorView(n_heads, d, tuple(q)), TensorView(len(starts), d, tuple(k))


def is_projection(module: nn.Module) -> bool:
    """Whether it multiplies by one matrix."""
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.ndim == 2
    return hasattr(module, "in_features") or (matrix and not isinstance(module, nn.Embedding))
