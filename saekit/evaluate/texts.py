"""Texts as padded batches of tokens, and which of those count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


def text_rows(lm: LanguageModel, texts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text, BOS first where the model has one; rows of ids are taken as they are.

    Texts longer than the model's context are cut.
    """
    rows = [lm.text.ids([text])[0] if isinstance(text, str) else list(text) for text in texts]
    return [row[: lm.max_context] for row in rows]


def text_batches(
    lm: LanguageModel, texts: Sequence[str] | Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens_BT, mask_BT) of the texts in the order given, pads on the right."""
    rows = [row for row in text_rows(lm, texts) if row]
    for start in range(0, len(rows), batch_size):
        yield lm.text.pad(rows[start : start + batch_size], "right")


def ordinary(lm: LanguageModel, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) True at real tokens that are not BOS or another special one."""
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long, device=tokens_BT.device)
    return mask_BT.bool() & ~torch.isin(tokens_BT, special)
