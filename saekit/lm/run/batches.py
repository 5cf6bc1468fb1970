"""Texts as padded batches of tokens, and the activations of documents."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.lm.padding import Padded
from saekit.lm.run.forward import RunnableModel
from saekit.names.site import Site


def text_rows(lm: RunnableModel, texts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text, beginning with BOS where the model's texts do. Rows of ids are taken as they are.

    Rows longer than the model's context are cut.

    Raises:
        ConfigError: one text is given instead of a list, or an element is neither text nor a row of token ids.
    """
    if isinstance(texts, str):
        raise ConfigError(f"One text is given where a list of texts is needed: {texts!r:.60}.", "Write [text].")
    try:
        rows = [lm.text.ids([text])[0] if isinstance(text, str) else list(map(operator.index, text)) for text in texts]
    except TypeError as error:
        raise ConfigError(f"The texts cannot be read: {error}.", "Give a list of texts, or rows of token ids.") from error
    return [row[: lm.max_context] for row in rows]


def text_batches(lm: RunnableModel, texts: Sequence[str] | Sequence[Sequence[int]], batch_size: int) -> Iterator[Padded]:
    """Padded batches of the texts in the order given, with pads on the right. Empty texts are left out."""
    return lm.text.batches([row for row in text_rows(lm, texts) if row], batch_size)


@torch.no_grad()
def document_activations(
    lm: RunnableModel, sites: Sequence[Site], documents: Sequence[Sequence[int]], batch_size: int = 64
) -> Iterator[tuple[np.ndarray, dict[Site, Tensor]]]:
    """Activations of the ordinary tokens of documents.

    Each document has a context of its own, after BOS where the model's texts begin with it, and is cut where the context ends.

    Args:
        documents: token ids without BOS.
        batch_size: documents per forward pass; documents of similar length run together.

    Yields:
        (n,) numbers of the tokens, counted over all tokens of all documents in the order given; and their activations
        (n, width) by site.
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
        counts_BT = lm.ordinary(tokens_BT, mask_BT)
        row_N, place_N = counts_BT.nonzero(as_tuple=True)
        which = begin[np.array(chosen)[row_N]] + place_N.numpy() - len(first)
        yield which, {site: x[counts_BT.to(x.device)].flatten(1) for site, x in acts.items()}
