"""Writing a store: tokens are made in one thread, forward passes run in this one, shards are written in a third."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit.activations.corpus.base import Corpus, check_corpus
from saekit.activations.corpus.batches import BEGINNING, Cursor, Packing, TokenBatch, check_packing, token_batches
from saekit.activations.prefetch import prefetch
from saekit.activations.store.base import model_facts
from saekit.activations.store.manifest import FILE, Manifest, ShardEntry, is_shard_name, shard_name
from saekit.activations.store.shard import storage_dtype
from saekit.activations.store.shard_writer import ShardPipe
from saekit.activations.store.store import ActivationStore, damaged
from saekit.errors import ConfigError, StoreMismatch, WorkspaceError
from saekit.files import clean, is_leftover, lock
from saekit.names.site import Site
from saekit.progress import Bar, track
from saekit.version import VERSION

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_SHARD_TOKENS, _SHARD_BYTES = 2**16, 2**29
_log = logging.getLogger(__name__)


def write_store(
    path: str | Path,
    lm: LanguageModel,
    sites: Iterable[str | Site],
    corpus: Corpus,
    *,
    n_tokens: int | None = None,
    context: int | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    shard_tokens: int | None = None,
    packing: Packing = "pack",
    progress: bool = True,
) -> ActivationStore:
    """Write the activations of `corpus` at `sites`, all in one pass, to the folder `path`.

    The same call goes on where an interrupted one ended, and returns at once where one has finished. Killed, it loses the shard
    in flight; the result holds the same bytes as if it had never been interrupted. A shard that is missing or cut short is made
    again, so a damaged one is mended by removing its file and calling again.

    Args:
        n_tokens: rows in all, BOS included; a corpus with fewer is stored whole, once. None: the whole corpus.
        context: tokens in a context; None: what the model has positions for, at most 256.
        dtype: of the stored numbers: float32, float16 or bfloat16.
        batch_size: contexts in a forward pass; None: about 2048 tokens, 32768 on a GPU. Like `shard_tokens` it may differ
            between an interruption and the next call, but then numbers equal an uninterrupted run's up to rounding only.
        shard_tokens: rows in a shard, rounded up to whole batches; None: 65536, or as many as make 512 MiB.
        packing: see :func:`saekit.activations.token_batches`.
        progress: show a bar.

    Raises:
        StoreMismatch: `path` holds activations of something else; the message names what differs.
        UnknownSite, ContextTooLong, ConfigError, CorpusError: what is asked for cannot be done. Nothing is written.
        NonFiniteActivations: the model gives NaN or infinity, or more than `dtype` holds. Shards that were whole are kept.
        StorageFull: the disk is full. Shards that were whole are kept.
        WorkspaceError: another process is writing to `path`.
    """
    wanted = sorted({lm.site(site) for site in sites})
    _check_sizes(lm, wanted, n_tokens, context, dtype, packing)
    widths = {site: lm.width(site) for site in wanted}
    row_bytes = sum(widths.values()) * storage_dtype(dtype).itemsize
    context = default_context(lm) if context is None else context
    job = _Job(
        path=Path(path),
        lm=lm,
        sites=wanted,
        corpus=corpus,
        n_tokens=n_tokens,
        context=context,
        packing=packing,
        dtype=storage_dtype(dtype),
        batch_size=default_batch_size(lm, context) if batch_size is None else batch_size,
        shard_tokens=max(1, min(_SHARD_TOKENS, _SHARD_BYTES // row_bytes)) if shard_tokens is None else shard_tokens,
    )
    provenance = {
        "saekit": VERSION,
        "model": model_facts(lm),
        "corpus": {"source": corpus.source, **corpus.fingerprint()},
        "sites": {str(site): width for site, width in widths.items()},
        "context": context,
        "packing": packing,
        "n_tokens": n_tokens,
        "dtype": dtype,
    }
    manifest = job.begin(provenance)
    if not job.finished(manifest):
        check_corpus(corpus)
        with _writing(job.path):
            manifest = job.begin(provenance)  # another process may have written meanwhile
            job.clear(manifest)
            job.run(manifest, progress)
    if n_tokens is not None and manifest.n_tokens < n_tokens:
        _log.warning(
            "%s has only %d of the %d tokens asked for; each is stored once.", corpus.source, manifest.n_tokens, n_tokens
        )
    return ActivationStore.open(job.path)


def check_settings(
    lm: LanguageModel,
    sites: Iterable[str | Site],
    corpus: Corpus,
    *,
    n_tokens: int | None = None,
    context: int | None = None,
    dtype: str = "float32",
    packing: Packing = "pack",
) -> None:
    """Raise what :func:`write_store` would raise at once; reads up to the first text of the corpus and writes nothing.

    Raises:
        UnknownSite, ContextTooLong, ConfigError, CorpusError: what is asked for cannot be done.
    """
    _check_sizes(lm, [lm.site(site) for site in sites], n_tokens, context, dtype, packing)
    check_corpus(corpus)


def _check_sizes(
    lm: LanguageModel, sites: list[Site], n_tokens: int | None, context: int | None, dtype: str, packing: Packing
) -> None:
    if not sites:
        raise ConfigError("No site was given.", "Name at least one, like 'resid_post.3'.")
    for site in sites:
        lm.width(site)
    storage_dtype(dtype)
    check_packing(lm, default_context(lm) if context is None else context, n_tokens, packing)


def default_context(lm: LanguageModel) -> int:
    """Tokens in a context where nobody says."""
    return min(256, lm.max_context)


def default_batch_size(lm: LanguageModel, context: int) -> int:
    """Contexts in a forward pass: few enough for a CPU's caches and allocator, enough to keep a GPU busy."""
    return max(1, (2**11 if lm.device.type == "cpu" else 2**15) // context)


@dataclass
class _Job:
    path: Path
    lm: LanguageModel
    sites: list[Site]
    corpus: Corpus
    n_tokens: int | None
    context: int
    packing: Packing
    dtype: torch.dtype
    batch_size: int
    shard_tokens: int

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("shard_tokens", self.shard_tokens)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")

    def begin(self, provenance: dict[str, Any]) -> Manifest:
        """The manifest of the store, or a new one.

        Raises:
            StoreMismatch: the folder holds other activations, or something else.
        """
        if (self.path / FILE).exists():
            manifest = Manifest.load(self.path)
            manifest.require(provenance, self.path)
            return manifest
        if self.path.exists() and not self.path.is_dir():
            raise StoreMismatch(f"{self.path} is a file.", "Choose a folder.")
        # A process that is killed before its first shard is entered may leave this shard and temporary files.
        names = sorted(file.name for file in self.path.iterdir()) if self.path.exists() else []
        if others := [name for name in names if name != shard_name(0) and not is_leftover(name)]:
            raise StoreMismatch(f"{self.path} holds {others[0]!r}, and no activations.", "Choose another folder.")
        return Manifest(provenance)

    def finished(self, manifest: Manifest) -> bool:
        """Whether nothing is left to do."""
        return manifest.complete and not any(damaged(self.path, entry) for entry in manifest.shards)

    def clear(self, manifest: Manifest) -> None:
        """Remove what a killed process left in flight."""
        entered = {entry.file for entry in manifest.shards}
        clean(self.path)
        for file in self.path.iterdir():
            if is_shard_name(file.name) and file.name not in entered:
                file.unlink()

    def run(self, manifest: Manifest, progress: bool) -> None:
        """Make the shards that are missing, then those still to come."""
        lost = [index for index, entry in enumerate(manifest.shards) if damaged(self.path, entry)]
        with track("caching", total=self.n_tokens, subject="activations", enabled=progress) as bar:
            for index in lost:
                self._fill(manifest, index, manifest.shards[index].tokens, bar)
            if not manifest.complete:
                left = None if self.n_tokens is None else self.n_tokens - manifest.n_tokens
                if left != 0:
                    self._fill(manifest, len(manifest.shards), left, bar)
                manifest.complete = True
                manifest.save(self.path)
            bar.end(manifest.n_tokens)

    def _fill(self, manifest: Manifest, first: int, count: int | None, bar: Bar) -> None:
        """Write `count` rows from where shard `first` begins: that shard if it is a lost one, else it and those after it."""
        start = manifest.shards[first - 1].after if first else BEGINNING
        done = sum(entry.tokens for entry in manifest.shards[:first])
        shard_tokens = self.shard_tokens if first == len(manifest.shards) else manifest.shards[first].tokens

        def enter(index: int, entry: ShardEntry) -> None:
            before = list(manifest.shards)
            manifest.shards[index : index + 1] = [entry]
            try:
                manifest.save(self.path)
            except BaseException:
                manifest.shards = before
                raise

        pipe = ShardPipe(self.path, first, shard_tokens, self.dtype, self.lm.special_ids, enter)
        with pipe, contextlib.closing(prefetch(self._batches(start, count), depth=4)) as batches:
            for batch in batches:
                # Pads are on the right, after every real token, so that causal attention needs no mask for them.
                pipe.put(batch, self.lm.run(batch.tokens_BT, read=self.sites, logits=None).acts)
                done += batch.n_tokens
                bar.update(done, note=self.path.name)

    def _batches(self, start: Cursor, count: int | None) -> Iterator[TokenBatch]:
        return token_batches(
            self.lm,
            self.corpus,
            context=self.context,
            n_tokens=count,
            batch_size=self.batch_size,
            packing=self.packing,
            start=start,
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the folder for writing; the lock ends with the process. A folder in which nothing was completed is not left behind."""
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path, WorkspaceError(f"Another process is writing to {path}.", "Wait for it to end.")):
            yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: something was completed
                path.rmdir()
