"""What a push does to the words of a concept: the gradient of their log-probability where a text turns to the concept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saekit.errors import CorpusError
from saekit.steer.vectors.data import FitData

_PAIRS, _AFTER, _LEAST = 32, 8, 4
"""Pairs that are used, tokens of the concept that count, and fewest ordinary tokens of a beginning that both texts share."""


def turns(data: FitData, pairs: int = _PAIRS, after: int = _AFTER) -> list[tuple[list[int], list[int]]]:
    """Beginnings without the concept and how they go on with it, as token ids.

    Where a pair of texts begins alike, it turns where the texts part. Otherwise the first third of the negative text goes on
    with the positive one. A push at the beginning must make the turn more probable to steer.
    """
    found = []
    opening = 1 if data.lm.text.bos_token_id is not None else 0
    for positive, negative in zip(data.ids("positive"), data.ids("negative")):
        shared = next((t for t, (a, b) in enumerate(zip(positive, negative)) if a != b), min(len(positive), len(negative)))
        if shared >= opening + _LEAST:
            before, then = positive[:shared], positive[shared : shared + after]
        else:
            before = negative[: max(len(negative) // 3, opening + 1)]
            then = positive[opening : opening + after]
        if before and then:
            found.append((before, then))
        if len(found) == pairs:
            break
    return found


def turning_gradient(data: FitData, rows: Sequence[tuple[list[int], list[int]]] | None = None) -> Tensor:
    """(width,) float64: the derivative of the mean log-probability of a token of the concept, by a push at all ordinary tokens.

    Its product with f_j is, to first order, what adding feature j does for the concept: attribution of features to the output
    that steering is for (gradient . f_j).

    Args:
        rows: beginnings and what follows; None: :func:`turns`.

    Raises:
        CorpusError: no pair of texts turns.
    """
    lm = data.lm
    rows = turns(data) if rows is None else rows
    if not rows:
        raise CorpusError("No pair of texts differs after a common beginning.", "Give texts of at least two tokens.")
    total, count = torch.zeros(lm.width(data.site), dtype=torch.double), 0
    for start in range(0, len(rows), data.batch_size):
        some = rows[start : start + data.batch_size]
        tokens_BT, mask_BT = (each.to(lm.device) for each in lm.text.pad([[*a, *b] for a, b in some], "right"))
        places = [(b, t) for b, (before, then) in enumerate(some) for t in range(len(before) - 1, len(before) + len(then) - 1)]
        b, t = torch.tensor(places, device=lm.device).T
        # The caller may be in torch.no_grad or torch.inference_mode.
        with torch.inference_mode(False), torch.enable_grad():
            run = lm.run(tokens_BT, attention_mask=mask_BT, read=[data.site], grad=True, logits="all")
            assert run.logits is not None, "all logits were asked for"
            logp_NV = run.logits[b, t].float().log_softmax(-1)
            said = logp_NV.gather(1, tokens_BT[b, t + 1][:, None]).sum()
            (grad_BTD,) = torch.autograd.grad(said, [run[data.site]])
        total += grad_BTD.flatten(2)[lm.ordinary(tokens_BT, mask_BT)].double().sum(0).cpu()
        count += len(places)
    return total / count
