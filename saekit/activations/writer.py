"""Writing a store: tokens are made in one thread, forward passes run in this one, shards are written in a third."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit import __version__
from saekit.activations.ahead import ahead
from saekit.activations.corpus import Corpus, check_corpus
from saekit.activations.manifest import FILE, Manifest, ShardEntry
from saekit.activations.pipe import ShardPipe
from saekit.activations.shard import storage_dtype
from saekit.activations.store import ActivationStore, damaged, model_facts
from saekit.activations.tokens import BEGINNING, Cursor, Packing, TokenBatch, token_batches
from saekit.errors import ConfigError, WorkspaceError
from saekit.files import PARTIAL
from saekit.lm.sites import Site
from saekit.progress import Bar, track

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
    check_settings(lm, sites := list(sites), corpus, context=context, dtype=dtype, packing=packing, n_tokens=n_tokens)
    wanted = sorted({lm.site(site) for site in sites})
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
    job.check()
    provenance = {
        "saekit": __version__,
        "model": model_facts(lm),
        "corpus": {"source": corpus.source, **corpus.fingerprint()},
        "sites": {str(site): width for site, width in widths.items()},
        "context": context,
        "packing": packing,
        "n_tokens": n_tokens,
        "dtype": dtype,
    }
    with _writing(job.path):
        job.manifest = _begin(job.path, provenance)
        job.run(progress)
    if n_tokens is not None and job.manifest.n_tokens < n_tokens:
        _log.warning(
            "%s has only %d of the %d tokens asked for; each is stored once.", corpus.source, job.manifest.n_tokens, n_tokens
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
    widths = [lm.width(site) for site in sites]
    if not widths:
        raise ConfigError("No site was given.", "Name at least one, like 'resid_post.3'.")
    storage_dtype(dtype)
    token_batches(lm, corpus, context=default_context(lm) if context is None else context, n_tokens=n_tokens, packing=packing)
    check_corpus(corpus)


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
    manifest: Manifest = field(init=False)

    def check(self) -> None:
        """Raise where the sizes that :func:`check_settings` is not given are impossible."""
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens}; it must be at least 1.")
        self._batches(BEGINNING, self.n_tokens)

    def run(self, progress: bool) -> None:
        """Make the shards that are missing, then those still to come."""
        manifest = self.manifest
        lost = [index for index, entry in enumerate(manifest.shards) if damaged(self.path, entry)]
        if manifest.complete and not lost:
            return
        with track("caching", total=self.n_tokens, unit="tokens", enabled=progress) as bar:
            for index in lost:
                count = manifest.shards[index].tokens
                self._fill(index, count, shard_tokens=count, bar=bar, done=0)
            if manifest.complete:
                return
            left = None if self.n_tokens is None else self.n_tokens - manifest.n_tokens
            if left != 0:
                self._fill(len(manifest.shards), left, shard_tokens=self.shard_tokens, bar=bar, done=manifest.n_tokens)
            manifest.complete = True
            manifest.save(self.path)
            bar.end(manifest.n_tokens)

    def _fill(self, first: int, count: int | None, *, shard_tokens: int, bar: Bar, done: int) -> None:
        """Write `count` rows from where shard `first` begins."""
        start = self.manifest.shards[first - 1].after if first else BEGINNING
        pipe = ShardPipe(self.path, first, shard_tokens, self.dtype, self.lm.special_ids, self._enter)
        with pipe, contextlib.closing(ahead(self._batches(start, count), depth=4)) as batches:
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

    def _enter(self, index: int, entry: ShardEntry) -> None:
        """Enter a shard that is whole in the manifest, in place of a damaged one or after the last."""
        before = list(self.manifest.shards)
        self.manifest.shards[index : index + 1] = [entry]
        try:
            self.manifest.save(self.path)
        except BaseException:
            self.manifest.shards = before
            raise


def _begin(path: Path, provenance: dict[str, Any]) -> Manifest:
    """The manifest in `path`, or a new one; files that a killed process left in flight are removed."""
    manifest = Manifest.load(path) if (path / FILE).exists() else Manifest(provenance)
    manifest.require(provenance, path)
    entered = {entry.file for entry in manifest.shards}
    for file in [*path.glob(f"*{PARTIAL}"), *(file for file in path.glob("shard-*.h5") if file.name not in entered)]:
        file.unlink()
    return manifest


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the folder for writing; the lock ends with the process. A folder in which nothing was completed is not left behind."""
    import fcntl

    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise WorkspaceError(f"Another process is writing to {path}.", "Wait for it to end.") from error
    finally:
        os.close(folder)
        if not existed:
            with contextlib.suppress(OSError):  # not empty: something was completed
                path.rmdir()
