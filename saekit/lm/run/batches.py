"""Texts as padded batches of tokens, and which of those count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.names.site import Site


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


@torch.no_grad()
def document_activations(
    lm: LanguageModel, sites: Sequence[Site], documents: Sequence[Sequence[int]], batch_size: int = 64
) -> Iterator[tuple[np.ndarray, dict[Site, Tensor]]]:
    """Activations of the tokens of documents, each in a context of its own after a BOS, and cut where the context ends.

    Args:
        documents: token ids without BOS.
        batch_size: documents run at a time, those of like length together.

    Yields:
        (n,) which tokens these are, counted over all documents in the order given; and their activations (n, width) by site.
    """
    begin = np.cumsum([0, *map(len, documents)])
    order = sorted(range(len(documents)), key=lambda d: len(documents[d]))
    first = [] if lm.bos_token_id is None else [lm.bos_token_id]
    for start in range(0, len(order), batch_size):
        chosen = [d for d in order[start : start + batch_size] if documents[d]]
        rows = [[*first, *documents[d]][: lm.max_context] for d in chosen]
        if not rows:
            continue
        tokens_BT, mask_BT = lm.text.pad(rows, "right")
        acts = lm.run(tokens_BT, attention_mask=mask_BT, read=sites, logits=None).acts
        mask_BT[:, : len(first)] = 0
        which = np.concatenate([begin[d] + np.arange(len(row) - len(first)) for d, row in zip(chosen, rows)])
        yield which, {site: x[mask_BT.bool().to(x.device)].flatten(1) for site, x in acts.items()}
