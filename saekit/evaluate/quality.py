"""How good a dictionary is, measured on documents that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saekit.activations import ActivationReader, is_heldout
from saekit.activations.source import HELDOUT
from saekit.errors import CorpusError
from saekit.progress import track
from trainers.metrics import ce_recovered, reconstruction

if TYPE_CHECKING:
    from saekit.activations import ActivationStore
    from saekit.lm import LanguageModel
    from saekit.lm.sites import Site
    from saekit.sae import SAE

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

    Args:
        heldout: the share of documents that training held out.
        max_tokens: at most so many held-out tokens are looked at.
        dead_tokens: at most so many tokens of the whole store decide which latents are dead.

    Returns:
        fvu, l0: of held-out tokens (:func:`trainers.metrics.reconstruction`).
        dead_fraction: latents that fire on none of the store's tokens.
        ce, ce_spliced, ce_zero, ce_recovered, kl: with the dictionary spliced into the model on held-out documents
            (:func:`trainers.metrics.ce_recovered`).
        heldout_tokens: how many tokens the former are of.

    Raises:
        CorpusError: no document is held out.
    """
    sites = sorted({site, sae.cfg.site_out or site})

    def batches(split: str, n_tokens: int) -> Iterator[dict[Site, Tensor]]:
        reader = ActivationReader(store, sites, batch_size=_BATCH, split=split, heldout=heldout, epochs=1)  # type: ignore[arg-type]
        return islice(reader, -(-n_tokens // _BATCH))

    with track("measuring", total=3, unit="steps", enabled=progress) as bar:
        held = reconstruction(sae, batches("heldout", max_tokens))
        bar.update(1, note=f"FVU {held['fvu']:.4f}")
        dead = reconstruction(sae, batches("all", dead_tokens))["dead_fraction"]
        bar.update(2, note=f"dead {dead:.2%}")
        spliced = ce_recovered(lm, sae, site, heldout_documents(lm, store, heldout=heldout, max_tokens=max_tokens))
        bar.update(3, note=f"cross-entropy recovered {spliced['ce_recovered']:.2%}")
    spliced.pop("n_tokens")
    return {"fvu": held["fvu"], "l0": held["l0"], "dead_fraction": dead, **spliced, "heldout_tokens": held["n_tokens"]}


class PaddedRows(NamedTuple):
    """Token ids (B, T), and the mask that is 1 at real tokens."""

    tokens_BT: Tensor
    mask_BT: Tensor


def heldout_documents(
    lm: LanguageModel, store: ActivationStore, *, heldout: float = HELDOUT, max_tokens: int = 2**16
) -> Iterator[PaddedRows]:
    """Held-out documents of a store, each in a row of its own: nothing of another document is before it.

    Raises:
        CorpusError: there is none with two tokens.
    """
    rows: list[list[int]] = []
    n = 0
    for block in store.stream([]):
        begins_N = torch.ones(len(block.tokens_N), dtype=torch.bool)
        begins_N[1:] = (block.document_N[1:] != block.document_N[:-1]) | (block.position_N[1:] == 0)
        starts = begins_N.nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], len(begins_N)]):
            if stop - start < 2 or not is_heldout(block.document_N[start : start + 1], heldout)[0]:
                continue
            row = block.tokens_N[start:stop].tolist()
            first = lm.bos_token_id
            row = row if first is None or row[0] == first else [first, *row]
            rows.append(row[: lm.max_context])
            n += len(row)
        if n >= max_tokens:
            break
    if not rows:
        raise CorpusError(f"{store.path} holds no held-out document.", "Cache more documents, or hold out more.")
    for i in range(0, len(rows), _SEQUENCES):
        yield PaddedRows(*lm.text.pad(rows[i : i + _SEQUENCES], "right"))
