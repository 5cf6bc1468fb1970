"""Vocabulary projection: which tokens a feature's decoder direction promotes and suppresses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from feature_db.index.terms import Stats
from saekit.errors import UnknownSite

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site

TOP = 50


def to_residual(lm: LanguageModel, site: Site, vectors_ND: Tensor) -> Tensor | None:
    """The directions that vectors at `site` write to the residual stream, (N, d_model). None if the site does not write to it."""
    from saekit.objects import raw_space

    space = raw_space(lm, site)
    try:
        units = space.directions().flatten(0, -2)
    except UnknownSite:
        return None
    return vectors_ND.to(units) @ units


def countable(lm: LanguageModel) -> Tensor:
    """(V,) True at tokens of the tokenizer that are not special; a vocabulary is often padded beyond. On the CPU."""
    allowed = torch.ones(lm.W_U.shape[1], dtype=torch.bool)
    if lm.tokenizer is not None:
        allowed = torch.isin(torch.arange(len(allowed)), torch.tensor(sorted(lm.tokenizer.get_vocab().values())))
    return allowed & ~torch.isin(torch.arange(len(allowed)), lm.special_tensor.cpu())


def score_scale(tokens: int) -> float:
    """2 sqrt(2 ln V): twice the expected maximum of V normal numbers."""
    return 2 * math.sqrt(2 * math.log(max(tokens, 2)))


@torch.no_grad()
def logit_effects(lm: LanguageModel, resid_ND: Tensor, *, chunk: int = 128) -> Iterator[Tensor]:
    """The direct effect of directions on the logits of all tokens, (n, V) float32 on the CPU for `chunk` directions at a time.

    They are `unembed(ln_final(direction))` (VocabProj, arXiv 2501.08319) minus the biases of the final LayerNorm and of the head,
    which are the same for every direction. The biases are the even part of the map; the rest is odd.

    Args:
        lm: the model.
        resid_ND: (N, d_model) directions in the residual stream.
        chunk: directions projected at a time.
    """
    weight = lm.W_U
    bias: Tensor | None = None
    for part in resid_ND.split(chunk):
        part = part.to(weight.device, weight.dtype)
        if bias is None:
            one = part[:1]
            bias = (lm.unembed(one).float() + lm.unembed(-one).float()) / 2
        yield (lm.unembed(part).float() - bias).cpu()


@torch.no_grad()
def promoted(lm: LanguageModel, resid_ND: Tensor, *, top: int = TOP, chunk: int = 128) -> tuple[Stats, Stats]:
    """Find the `top` tokens that each direction promotes most and suppresses most.

    The logits are those of :func:`logit_effects`. `score` is the distance of a logit from the feature's mean logit in standard
    deviations, divided by :func:`score_scale`, and at most 1.

    Args:
        lm: the model.
        resid_ND: (N, d_model) directions in the residual stream.
        top: number of tokens of each kind.
        chunk: directions projected at a time.
    """
    allowed = countable(lm)
    top = min(top, int(allowed.sum()) // 2)
    scale = score_scale(len(allowed))
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"promotes": [], "suppresses": []}
    for logits in logit_effects(lm, resid_ND, chunk=chunk):
        mean, std = logits.mean(1, keepdim=True), logits.std(1, keepdim=True).clamp_min(1e-12)
        for role, sign in (("promotes", 1.0), ("suppresses", -1.0)):
            best, ids = torch.where(allowed, sign * logits, -torch.inf).topk(top, dim=1)
            found[role].append((ids, sign * best, ((best - sign * mean) / std / scale).clamp(0, 1)))
    feature, rank = np.divmod(np.arange(len(resid_ND) * top), max(top, 1))
    promotes, suppresses = (Stats(role, feature, rank, *_columns(parts)) for role, parts in found.items())
    return promotes, suppresses


def _columns(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Any, ...]:
    """item, value, rate, peak, hits and score of the rows of promoted tokens."""
    if not parts:
        zeros = np.zeros(0)
        return zeros.astype(np.int64), zeros, None, None, None, zeros
    ids, values, scores = (torch.cat(each).flatten().numpy() for each in zip(*parts))
    return ids, values.astype(np.float64), None, None, None, scores.astype(np.float64)
