"""Side effects of any change on neutral text; those on tasks are in :mod:`saekit.evaluate.capabilities`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from saekit.evaluate.changed import Change
from saekit.improve.target import batches

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@torch.no_grad()
def on_neutral_text(
    lm: LanguageModel,
    change: Change,
    rows: Sequence[Sequence[int]],
    before: Change | None = None,
    *,
    batch_size: int = 8,
) -> dict[str, float]:
    """Mean KL(before || changed) and rise of the cross-entropy of the next token, in nats a token, at ordinary tokens.

    Args:
        before: the state to compare with; None: the unchanged model.
        rows: neutral texts as token ids. The prompt of the change is not put before them.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for _, tokens_BT, mask_BT in batches(lm, rows, batch_size):
        counted_BT = lm.ordinary(tokens_BT, mask_BT)[:, :-1] & mask_BT[:, 1:].bool()
        with (before or Change()).on(lm) as started:
            base = started.run(tokens_BT, attention_mask=mask_BT).logits[:, :-1][counted_BT].float().log_softmax(-1)
        with change.on(lm) as changed:
            new = changed.run(tokens_BT, attention_mask=mask_BT).logits[:, :-1][counted_BT].float().log_softmax(-1)
        next_N1 = tokens_BT[:, 1:][counted_BT][:, None]
        kl_N = (base.exp() * (base - new)).sum(-1).clamp_min(0)
        delta_N = (base.gather(1, next_N1) - new.gather(1, next_N1))[:, 0]
        sums += torch.tensor([float(kl_N.double().sum()), float(delta_N.double().sum()), len(kl_N)], dtype=torch.float64)
    tokens = max(1.0, float(sums[2]))
    return {"kl": float(sums[0]) / tokens, "cross_entropy_delta": float(sums[1]) / tokens, "tokens": int(sums[2])}
