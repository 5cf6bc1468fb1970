"""A store of activations on disk: opening, checking and reading it in order."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from torch import Tensor

from saekit.activations.loader.prefetch import ahead
from saekit.activations.store.manifest import Manifest, ShardEntry
from saekit.activations.store.shard import TOKEN_COLUMNS, as_tensor, column_problem, storage_dtype
from saekit.errors import StoreCorrupt, StoreMismatch, UnknownSite
from saekit.lm.fingerprint import differs
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.activations.loader.source import ActivationSource
    from saekit.lm import LanguageModel

_MEND = "Restore it from a copy, or move it away and run the same cache command again, which makes it anew."
_OPEN_FILES = 16


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
    """bool: BOS, EOS and other tokens that stand for no text, and the first of each context: attention gathers there."""
    acts: dict[Site, Tensor]
    """(N, width) float32 by site."""

    @property
    def stop(self) -> int:
        """The row after the last: where the next block starts."""
        return self.start + len(self.tokens_N)


class ActivationStore:
    """Activations that :func:`saekit.activations.write_store` wrote. Open one with :meth:`open`.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        sites: the sites it holds, in the order of computation.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._widths = {Site.parse(site): int(width) for site, width in manifest.provenance["sites"].items()}
        self.sites = sorted(self._widths)
        self._first_rows = np.cumsum([0, *(entry.tokens for entry in manifest.shards)])
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: str | Path, *, partial: bool = False) -> ActivationStore:
        """The store in the folder `path`. Checks that every shard is there in its full length, which costs next to nothing.

        Args:
            partial: take one that is not finished, too.

        Raises:
            StoreCorrupt: there is none, it is not finished, its manifest does not parse, or a shard is missing or cut short.
            StoreMismatch: a newer version of saekit wrote it.
        """
        path = Path(path).absolute()  # shards are opened later, perhaps from another folder
        manifest = Manifest.load(path)
        for entry in manifest.shards:
            if problem := damaged(path, entry):
                raise StoreCorrupt(f"{path / entry.file} {problem}.", _MEND)
        if not (manifest.complete or partial):
            raise StoreCorrupt(f"{path} is unfinished: {manifest.n_tokens} tokens so far.", "Run the same cache command again.")
        return cls(path, manifest)

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, {self.n_tokens:,} tokens at {', '.join(map(str, self.sites))})"

    @property
    def n_tokens(self) -> int:
        """Rows."""
        return self.manifest.n_tokens

    @property
    def provenance(self) -> dict[str, Any]:
        """What the activations are of: model, corpus, sites, context, packing, dtype."""
        return self.manifest.provenance

    @property
    def context(self) -> int:
        """Tokens in a context, at most."""
        return self.provenance["context"]

    @property
    def dtype(self) -> str:
        """Of the stored numbers: float32, float16 or bfloat16. What is read is float32."""
        return self.provenance["dtype"]

    @property
    def checksums(self) -> list[str]:
        """What tells these activations from others."""
        return [shard.sha256 for shard in self.manifest.shards]

    @property
    def complete(self) -> bool:
        """Whether every token asked for, or all that the corpus has, is here."""
        return self.manifest.complete

    def width(self, site: str | Site) -> int:
        """Numbers per token at `site`.

        Raises:
            UnknownSite: it is not in this store.
        """
        return self._widths[self.site(site)]

    def site(self, site: str | Site) -> Site:
        """`site`, if it is in this store.

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
        """Raise unless these are activations of `lm`; dtype and device do not matter.

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

    def verify(self, progress: bool = True) -> None:
        """Read everything: checksums, shapes, dtypes, counts.

        Raises:
            StoreCorrupt: names the first shard that is damaged and how to mend it.
        """
        for _, error in self.problems(progress):
            raise error

    def problems(self, progress: bool = True) -> Iterator[tuple[str, StoreCorrupt]]:
        """Read everything; gives (file, error) of each shard that is damaged or cannot be read."""
        with track("verifying", total=self.n_tokens, unit="tokens", enabled=progress) as bar:
            for index, entry in enumerate(self.manifest.shards):
                try:
                    self._check_shard(index)
                except StoreCorrupt as error:
                    yield entry.file, error
                bar.update(int(self._first_rows[index + 1]), note=entry.file)

    def _check_shard(self, shard: int) -> None:
        entry = self.manifest.shards[shard]
        path = self.path / entry.file
        if problem := damaged(self.path, entry):
            raise StoreCorrupt(f"{path} {problem}.", _MEND)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
        if digest != entry.sha256:
            raise StoreCorrupt(f"{path} has changed since it was written: its checksum is another.", _MEND)
        with self._reading(shard):
            pass  # opening a shard checks its columns

    def _check_columns(self, shard: int, file: h5py.File) -> None:
        """Raise unless a shard holds what the manifest says, so that nothing larger is ever allocated.

        Raises:
            StoreCorrupt: a column is missing, has another shape or dtype, or is not stored plainly in this file.
        """
        entry = self.manifest.shards[shard]
        stored = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        expected: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            name: ((entry.tokens,), np.dtype(dtype)) for name, dtype in TOKEN_COLUMNS.items()
        }
        expected |= {f"sites/{site}": ((entry.tokens, width), stored) for site, width in self._widths.items()}
        for name, (shape, dtype) in expected.items():
            if problem := column_problem(file, name, shape, dtype):
                raise StoreCorrupt(f"{self.path / entry.file}: {name} {problem}.", _MEND)

    # Reading

    def columns(self, shard: int, names: Sequence[str], start: int = 0, stop: int | None = None) -> list[np.ndarray]:
        """Rows start..stop of a shard's columns: `tokens`, `position`, `document`, `special` or `sites/<site>` as it is stored.

        Raises:
            StoreCorrupt: the shard cannot be read.
        """
        with self._reading(shard) as file:
            return [file[name][start:stop] for name in names]

    def acts(self, shard: int, site: Site, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop (N, width) of a shard at `site`, in the stored dtype."""
        return as_tensor(self.columns(shard, [f"sites/{site}"], start, stop)[0], self._torch_dtype)

    @cached_property
    def _torch_dtype(self) -> torch.dtype:
        return storage_dtype(self.dtype)

    @contextlib.contextmanager
    def _reading(self, shard: int) -> Iterator[h5py.File]:
        path = self.path / self.manifest.shards[shard].file
        try:
            with self._lock:  # readers may share a store between threads; h5py would take turns anyway
                if shard not in self._files:
                    file = h5py.File(path, "r", locking=False)  # shards never change, and some file systems have no locks
                    try:
                        self._check_columns(shard, file)
                    except BaseException:
                        file.close()
                        raise
                    self._files[shard] = file
                    while len(self._files) > _OPEN_FILES:
                        self._files.popitem(last=False)[1].close()
                self._files.move_to_end(shard)
                yield self._files[shard]
        except OSError as error:
            raise _unreadable(path, error) from error
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise StoreCorrupt(f"{path} cannot be read: {error}.", _MEND) from error

    def reader(self, sites: Iterable[str | Site], **settings: Any) -> ActivationSource:
        """Shuffled batches at `sites`; settings are those of :class:`saekit.activations.ActivationReader`."""
        from saekit.activations.loader.reader import ActivationReader

        return ActivationReader(self, sites, **settings)

    def stream(self, sites: Iterable[str | Site], *, batch_tokens: int = 4096, start: int = 0) -> Iterator[Block]:
        """Everything in stored order, read ahead in a thread.

        Args:
            sites: whose activations to read; may be empty, for the tokens alone.
            batch_tokens: rows of a block: as many whole contexts as fit, at least one. A block ends with its shard, too.
            start: row to begin at: 0 or a block's `stop`.

        Raises:
            UnknownSite: a site is not in this store.
            StoreCorrupt: a shard cannot be read.
        """
        return ahead(self._blocks([self.site(site) for site in sites], batch_tokens, start), depth=2)

    def _blocks(self, sites: list[Site], batch_tokens: int, start: int) -> Iterator[Block]:
        for shard in range(len(self.manifest.shards)):
            first, end = int(self._first_rows[shard]), int(self._first_rows[shard + 1])
            if end <= start:
                continue
            token_columns = dict(zip(TOKEN_COLUMNS, self.columns(shard, list(TOKEN_COLUMNS))))
            begins = np.append(np.flatnonzero(token_columns["position"] == 0), end - first)
            row = max(start - first, 0)
            while row < end - first:
                # The last beginning of a context within reach, but at least one context on.
                here = int(np.searchsorted(begins, row, side="right"))
                stop = int(begins[max(here, int(np.searchsorted(begins, row + batch_tokens, side="right")) - 1)])
                yield Block(
                    first + row,
                    **{f"{name}_N": torch.from_numpy(column[row:stop]) for name, column in token_columns.items()},
                    acts={site: self.acts(shard, site, row, stop).float() for site in sites},
                )
                row = stop


def damaged(folder: Path, entry: ShardEntry) -> str:
    """What is wrong with a shard, seen from outside; "" where nothing is."""
    try:
        size = (folder / entry.file).stat().st_size
    except FileNotFoundError:
        return "is missing"
    return "" if size == entry.bytes else f"has {size} bytes of {entry.bytes}"


def _unreadable(path: Path, error: OSError) -> StoreCorrupt:
    """The error for a shard that could not be read: damage only where the operating system does not say why."""
    mend = _MEND if error.errno is None else "The file itself may be sound: check its permissions and the disk."
    return StoreCorrupt(f"{path} cannot be read: {error}.", mend)


def model_facts(lm: LanguageModel) -> dict[str, str]:
    """What tells the model of a store."""
    facts = lm.fingerprint()
    return {
        "name": facts["name"],
        "revision": facts["revision"],
        "sha256": facts["model"],
        "tokenizer": facts["tokenizer"],
        "weights": facts["weights"],
        "dtype": str(lm.dtype).removeprefix("torch."),
    }
