"""Activations on disk, as columns of rows in shards: the common base of one store and of paired stores."""

from __future__ import annotations

import itertools
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekit.activations.prefetch import prefetch
from saekit.activations.store.shard import TOKEN_COLUMNS, as_tensor, storage_dtype
from saekit.errors import StoreMismatch, UnknownSite
from saekit.lm.chat import ChatTemplate, TrainOn
from saekit.lm.fingerprint import differs
from saekit.names.site import Site

_LOADING = ("attn_implementation", "quantization", "tokenizer", "trust_remote_code")
_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a store: whole contexts. N rows."""

    start: int
    """First row, counted over the whole store."""
    tokens_N: Tensor
    """int32 token ids."""
    position_N: Tensor
    """int32 place in the context, from 0; a context begins at each 0."""
    document_N: Tensor
    """int64 row of the corpus."""
    special_N: Tensor
    """bool: not trained on. BOS, EOS, other special tokens, the first token of each context, which is an attention sink, and
    tokens of chats that the user does not train on."""
    acts: dict[Site, Tensor]
    """(N, width) float32 by site."""

    @property
    def stop(self) -> int:
        """The row after the last: where the next block starts."""
        return self.start + len(self.tokens_N)


class StoredActivations(ABC):
    """Rows of activations on disk, in shards. Sites are aligned: row n of every site is of token n.

    Args:
        path: the folder, for messages.
        widths: numbers per token of each site.
        shard_rows: rows of each shard.

    Attributes:
        sites: the sites, in the order of computation.
    """

    def __init__(self, path: Path, widths: Mapping[Site, int], shard_rows: Sequence[int]) -> None:
        self.path, self.shard_rows = path, tuple(shard_rows)
        self._widths = dict(widths)
        self.sites = sorted(self._widths)
        self._first_rows = np.cumsum([0, *shard_rows])

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What the activations are of: model, corpus, sites, context, packing, dtype."""

    @property
    @abstractmethod
    def checksums(self) -> list[str]:
        """Checksums of the shards, which identify these activations."""

    @abstractmethod
    def columns(self, shard: int, names: Sequence[str], start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        """Rows start..stop of columns of a shard: `tokens`, `position`, `document`, `special`, or `sites/<site>` as stored.

        Raises:
            StoreCorrupt: the shard cannot be read.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.n_tokens:,} tokens at {', '.join(map(str, self.sites))})"

    @property
    def n_tokens(self) -> int:
        """Rows."""
        return int(self._first_rows[-1])

    @property
    def context(self) -> int:
        """Tokens in a context, at most."""
        return self.provenance["context"]

    @property
    def dtype(self) -> str:
        """Type of the stored numbers: float32, float16 or bfloat16. Batches are float32."""
        return self.provenance["dtype"]

    @property
    def train_on(self) -> TrainOn:
        """Which tokens of chats are trained on."""
        return self.provenance.get("train_on", "all")

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`.

        Raises:
            UnknownSite: it is not in this store.
        """
        return self._widths[self.site(site)]

    def site(self, site: str | Site) -> Site:
        """Parse `site` and check that it is in this store.

        Raises:
            UnknownSite: it is not.
        """
        site = Site.parse(site)
        if site not in self._widths:
            raise UnknownSite(
                f"{self.path} has no activations at {site}; it has {', '.join(map(str, self.sites))}.",
                "Cache it with the others that are wanted, to another folder.",
            )
        return site

    def check_model(self, lm: LanguageModel) -> None:
        """Raise unless these are activations of `lm`. Dtype and device may differ.

        Raises:
            StoreMismatch: names what differs.
        """
        here, now = self.provenance["model"], model_facts(lm)
        what = differs(*({**facts, "model": facts["sha256"]} for facts in (here, now)))
        if what is not None:
            mark = "sha256" if what == "model" else what
            marks = ("its weights", "other weights") if what == "weights" else (f"{mark} {here[mark][:12]}", now[mark][:12])
            raise StoreMismatch(
                f"{self.path} holds activations of {here['name']} ({marks[0]}), not of {now['name']} ({marks[1]}).",
                "Give the model it was made with, or cache this one to another folder.",
            )
        begun = self.provenance.get("bos", lm.text.has_bos)
        if begun != (lm.bos_token_id is not None):
            had, has = ("with", "without") if begun else ("without", "with")
            _log.warning(
                "The contexts of %s were cached %s BOS, and %s reads texts %s it; load it with bos=%r to read them alike.",
                self.path,
                had,
                lm.name,
                has,
                "any" if begun else "no",
            )

    def acts(self, shard: int, site: Site, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop (N, width) of a shard at `site`, in the stored dtype."""
        return as_tensor(self.columns(shard, [f"sites/{site}"], start, stop)[0], self._torch_dtype)

    @cached_property
    def _torch_dtype(self) -> torch.dtype:
        return storage_dtype(self.dtype)

    def stream(
        self, sites: Iterable[str | Site], *, batch_tokens: int = 4096, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Block]:
        """All rows in stored order, read ahead in a thread.

        Args:
            sites: whose activations to read; may be empty, for the tokens alone.
            batch_tokens: rows of a block: as many whole contexts as fit, at least one. A block ends with its shard, too.
            start: row to begin at: 0 or a block's `stop`.
            part: (r, n): of every n blocks, only number r has activations; the others have tokens only.

        Raises:
            UnknownSite: a site is not in this store.
            StoreCorrupt: a shard cannot be read.
        """
        return prefetch(self._blocks([self.site(site) for site in sites], batch_tokens, start, part), depth=2)

    def _blocks(self, sites: list[Site], batch_tokens: int, start: int, part: tuple[int, int]) -> Iterator[Block]:
        numbers = itertools.count()
        for shard in range(len(self.shard_rows)):
            first, end = int(self._first_rows[shard]), int(self._first_rows[shard + 1])
            if end <= start:
                continue
            token_columns = dict(zip(TOKEN_COLUMNS, self.columns(shard, list(TOKEN_COLUMNS))))
            begins = np.append(np.flatnonzero(token_columns["position"] == 0), end - first)
            row = max(start - first, 0)
            while row < end - first:
                stop = next_stop(begins, row, batch_tokens)
                chosen = sites if next(numbers) % part[1] == part[0] else []
                yield Block(
                    first + row,
                    **{f"{name}_N": torch.from_numpy(column[row:stop]) for name, column in token_columns.items()},
                    acts={site: self.acts(shard, site, row, stop).float() for site in chosen},
                )
                row = stop


def next_stop(begins: np.ndarray, row: int, batch_tokens: int) -> int:
    """Where a block that starts at `row` ends: at the last beginning of a context that fits, but after at least one context.

    Args:
        begins: rows at which contexts begin, ascending, and the end of the last one.
    """
    here = int(np.searchsorted(begins, row, side="right"))
    return int(begins[max(here, int(np.searchsorted(begins, row + batch_tokens, side="right")) - 1)])


def template_facts(lm: LanguageModel) -> dict[str, str]:
    """The chat template by which chats became the tokens of a store.

    Raises:
        ConfigError: the tokenizer has none.
    """
    template = ChatTemplate(lm.text)
    return {"chat_template": template.source, "chat_template_sha256": template.sha256}


def model_facts(lm: LanguageModel) -> dict[str, str]:
    """The facts that identify the model of a store, and how it was loaded."""
    facts = lm.fingerprint()
    loading = {name: value for name, value in lm.loading_facts().items() if name in _LOADING}
    return ({"loading": json.dumps(loading, sort_keys=True)} if loading else {}) | {
        "name": facts["name"],
        "revision": facts["revision"],
        "sha256": facts["model"],
        "tokenizer": facts["tokenizer"],
        "weights": facts["weights"],
        "dtype": str(lm.dtype).removeprefix("torch."),
    }
