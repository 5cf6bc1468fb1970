"""Activations of several models on the same tokens, read as if they were one store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saekit.activations.store.store import ActivationStore
from saekit.errors import StoreMismatch


class ComparedStores(ActivationStore):
    """A store, and beside its sites those of others: `resid_post.3`, and `resid_post.3@tuned` of the store called `tuned`.

    Rows, documents and marks are those of the first; a row of any site is of the same token.

    Args:
        store: the first.
        others: by what their model is called here.

    Raises:
        StoreMismatch: they do not hold the same tokens, row by row, or not in the same dtype.
    """

    def __init__(self, store: ActivationStore, **others: ActivationStore) -> None:
        super().__init__(store.path, store.manifest)
        self._others = others
        for label, other in others.items():
            self._check(other)
            self._widths |= {replace(site, model=label): other.width(site) for site in other.sites}
        self.sites = sorted(self._widths)

    def _check(self, other: ActivationStore) -> None:
        rows, theirs = ([entry.tokens for entry in each.manifest.shards] for each in (self, other))
        columns = ((self.columns(shard, ["tokens"])[0], other.columns(shard, ["tokens"])[0]) for shard in range(len(rows)))
        if rows != theirs or not all(np.array_equal(own, its) for own, its in columns):
            raise StoreMismatch(
                f"{other.path} does not hold the tokens of {self.path}, in their order.",
                "Cache both from the same data, with tokenizers that agree and the same --tokens, --context and --packing.",
            )
        if self.dtype != other.dtype:
            raise StoreMismatch(f"{self.path} holds {self.dtype} and {other.path} {other.dtype}.", "Cache one of them anew.")

    @property
    def checksums(self) -> list[str]:
        return super().checksums + [checksum for other in self._others.values() for checksum in other.checksums]

    def columns(self, shard: int, names: Sequence[str], start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        found = []
        for name in names:
            place, _, label = name.partition("@")
            if label:
                found += self._others[label].columns(shard, [place], start, stop)
            else:
                found += super().columns(shard, [name], start, stop)
        return found
