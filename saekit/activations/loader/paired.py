"""Activations of several models on the same tokens, read as if they were in one store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from saekit.activations.store.base import StoredActivations
from saekit.errors import StoreMismatch


class PairedStores(StoredActivations):
    """The sites of a store, and those of others under their names: `resid_post.3`, and `resid_post.3@tuned` of the store `tuned`.

    Row n of every site is of the same token. Documents and marks of special tokens are those of the first store.

    Args:
        store: the first store.
        others: the other stores, by the name that their model has here.

    Raises:
        StoreMismatch: the stores do not hold the same tokens, row by row, or have different dtypes.
    """

    def __init__(self, store: StoredActivations, **others: StoredActivations) -> None:
        widths = {site: store.width(site) for site in store.sites}
        for label, other in others.items():
            widths |= {replace(site, model=label): other.width(site) for site in other.sites}
        super().__init__(store.path, widths, store.shard_rows)
        self.store, self.others = store, others
        for other in others.values():
            self._check(other)

    def _check(self, other: StoredActivations) -> None:
        shards = range(len(self.shard_rows))
        columns = ((each.columns(shard, ["tokens"])[0] for each in (self.store, other)) for shard in shards)
        if self.shard_rows != other.shard_rows or not all(np.array_equal(own, its) for own, its in columns):
            raise StoreMismatch(
                f"{other.path} does not hold the tokens of {self.path}, in their order.",
                "Cache both from the same data, with tokenizers that agree and the same --tokens, --context and --packing.",
            )
        if self.dtype != other.dtype:
            raise StoreMismatch(
                f"{self.path} holds {self.dtype} and {other.path} {other.dtype}.",
                "Cache one of them again with the dtype of the other.",
            )

    @property
    def provenance(self) -> dict[str, Any]:
        return self.store.provenance

    @property
    def checksums(self) -> list[str]:
        return [checksum for each in (self.store, *self.others.values()) for checksum in each.checksums]

    def columns(self, shard: int, names: Sequence[str], start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        found = []
        for name in names:
            place, _, label = name.partition("@")
            found += (self.others[label] if label else self.store).columns(shard, [place], start, stop)
        return found
