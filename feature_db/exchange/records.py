"""Reads features for an export, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feature_db.store import vectors
from saekit.errors import DatabaseError

if TYPE_CHECKING:
    from feature_db.exchange.formats import Export
    from feature_db.records import FeatureRecord

AT_A_TIME = 128
"""Features that are read in one transaction: it keeps writers away, so it must be short."""


def batches(job: Export, size: int = AT_A_TIME) -> Iterator[list[FeatureRecord]]:
    """The records of the features of an export, in order, in lists of at most `size`; the progress bar follows.

    Raises:
        DatabaseError: the dictionary was indexed anew in the meantime, or its rows are damaged.
    """
    numbers = iter(job.numbers)
    done = 0
    while chunk := list(islice(numbers, size)):
        yield job.database.records(job.sae, chunk)
        done += len(chunk)
        job.bar.update(job.done + done)


def directions(job: Export, records: Sequence[FeatureRecord]) -> NDArray[np.float32] | None:
    """(N, d_out) decoder directions of the features; None where the database has none of this dictionary."""
    if not job.sae.d_out:
        return None
    found = np.asarray(vectors.mapped(job.sae)[[record.feature for record in records]])
    if not np.isfinite(found).all():
        raise DatabaseError(
            f"The decoder directions of {job.sae.dictionary} are not finite.",
            "Check the dictionary's weights, and index it again.",
        )
    return found


def context_length(job: Export) -> int | None:
    """Tokens in a context of the store; None where this is not recorded."""
    store = job.database.corpus(job.sae).get("store")
    found = store.get("context") if isinstance(store, dict) else None
    return found if type(found) is int and found > 0 else None


def corpus_name(job: Export) -> str:
    """The name of the corpus, without the folder of a local file; empty where it is not recorded."""
    store = job.database.corpus(job.sae).get("store")
    corpus = store.get("corpus") if isinstance(store, dict) else None
    name = str(corpus.get("source") or "") if isinstance(corpus, dict) else ""
    return Path(name).name if Path(name).is_absolute() else name
