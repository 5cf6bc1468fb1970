"""How good a dictionary is, measured on documents that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.activations import ActivationReader
from saekit.activations.source import HELDOUT, Split, in_split
from saekit.errors import CorpusError
from saekit.progress import track
from trainers.metrics import ce_recovered, reconstruction

if TYPE_CHECKING:
    from saekit.activations import ActivationStore
    from saekit.lm import LanguageModel
    from saekit.lm.sites import Site
    from saekit.sae import SAE

_log = logging.getLogger(__name__)
_BATCH = 4096
_SEQUENCES = 16


def quality(
    sae: SAE,
    lm: LanguageModel,
    store: ActivationStore,
    site: Site,
    *,
    heldout: float = HELDOUT,
    max_tokens: int = 2**16,
    dead_tokens: int = 2**20,
    progress: bool = True,
) -> dict[str, float]:
    """Measure `sae` on held-out documents of a store.

    Of a corpus so small that none is held out, on the documents that it was trained on: then `heldout_tokens` is 0, and a
    warning is logged.

    Args:
        heldout: the share of documents that training held out.
        max_tokens: of at most so many tokens.
        dead_tokens: at most so many tokens of the whole store decide which latents are dead.

    Returns:
        fvu, l0: of held-out activations (:func:`trainers.metrics.reconstruction`).
        dead_fraction: latents that fire on none of the store's tokens.
        ce, ce_spliced, ce_zero, ce_recovered, kl: with the dictionary spliced into the model on held-out documents
            (:func:`trainers.metrics.ce_recovered`).
        heldout_tokens: how many held-out activations these are.

    Raises:
        CorpusError: no document has two tokens.
        StoreMismatch: a transcoder does not say where it writes.
    """
    sites = sorted({site, sae.writes_at(site)})
    split: Split = "heldout"
    rows = _documents(lm, store, split, heldout, max_tokens)
    if not rows:
        split = "all"
        rows = _documents(lm, store, split, heldout, max_tokens)
        _log.warning("No document of %s is held out: the dictionary is measured on those that it was trained on.", store.path)
    if not rows:
        raise CorpusError(f"{store.path} holds no document of two tokens.", "Cache longer documents.")

    def batches(split: Split, n_tokens: int) -> Iterator[dict[Site, Tensor]]:
        reader = ActivationReader(store, sites, batch_size=_BATCH, split=split, heldout=heldout, epochs=1)
        return islice(reader, -(-n_tokens // _BATCH))

    with track("measuring", total=3, unit="steps", enabled=progress) as bar:
        found = reconstruction(sae, batches(split, max_tokens))
        bar.update(1, note=f"FVU {found['fvu']:.4f}")
        dead = reconstruction(sae, batches("all", dead_tokens))["dead_fraction"]
        bar.update(2, note=f"dead {dead:.2%}")
        spliced = ce_recovered(lm, sae, site, _padded(lm, rows))
        bar.update(3, note=f"cross-entropy recovered {spliced['ce_recovered']:.2%}")
    spliced.pop("n_tokens")
    n_heldout = found["n_tokens"] if split == "heldout" else 0
    return {"fvu": found["fvu"], "l0": found["l0"], "dead_fraction": dead, **spliced, "heldout_tokens": n_heldout}


class PaddedRows(NamedTuple):
    """Token ids (B, T), and the mask that is 1 at real tokens."""

    tokens_BT: Tensor
    mask_BT: Tensor


def _documents(lm: LanguageModel, store: ActivationStore, split: Split, heldout: float, max_tokens: int) -> list[list[int]]:
    """Tokens of the documents in a split that have two, each in a row of its own: nothing of another document is before it."""
    rows: list[list[int]] = []
    n = 0
    for block in store.stream([]):
        begins_N = torch.ones(len(block.tokens_N), dtype=torch.bool)
        begins_N[1:] = (block.document_N[1:] != block.document_N[:-1]) | (block.position_N[1:] == 0)
        starts = begins_N.nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], len(begins_N)]):
            if stop - start < 2 or not in_split(block.document_N[start : start + 1], split, heldout)[0]:
                continue
            row = block.tokens_N[start:stop].tolist()
            first = lm.bos_token_id
            row = row if first is None or row[0] == first else [first, *row]
            rows.append(row[: lm.max_context])
            n += len(row)
        if n >= max_tokens:
            break
    return rows


def _padded(lm: LanguageModel, rows: list[list[int]]) -> Iterator[PaddedRows]:
    for i in range(0, len(rows), _SEQUENCES):
        yield PaddedRows(*lm.text.pad(rows[i : i + _SEQUENCES], "right"))
