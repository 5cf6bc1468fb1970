"""ActAdd: the difference of the activations of two prompts at one place (Turner et al. 2023, arXiv 2308.10248)."""

from __future__ import annotations

import torch
from torch import Tensor

from saekit.errors import CorpusError
from saekit.steer.vectors.data import FitData, Side


def act_add(data: FitData) -> Tensor:
    """(width,) mean over texts of the activation at the last ordinary token, positive minus negative.

    With one text a side this is h(p+) - h(p-) at their last tokens.
    """
    return (_last(data, "positive") - _last(data, "negative")).float()


def _last(data: FitData, side: Side) -> Tensor:
    rows = [
        acts_TD[int(kept_T.nonzero().max())].double()
        for _, acts_BTD, kept_BT in data.batches(side)
        for acts_TD, kept_T in zip(acts_BTD, kept_BT)
        if kept_T.any()
    ]
    if not rows:
        raise CorpusError(f"The {side} side of the contrast has no ordinary token.", "Give texts of at least two tokens.")
    return torch.stack(rows).mean(0)
