"""Writing a store: one thread tokenises, this one runs forward passes, and a third one writes shards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit.activations.corpus.base import Corpus
from saekit.activations.corpus.batches import BEGINNING, TokenBatch
from saekit.activations.prefetch import prefetch
from saekit.activations.store.base import template_facts
from saekit.activations.store.manifest import FILE, Manifest, ShardEntry, is_shard_name, shard_name
from saekit.activations.store.plan import CacheConfig, StorePlan, check_documents
from saekit.activations.store.shard_writer import ShardLayout, write_shards
from saekit.activations.store.store import ActivationStore, damaged
from saekit.errors import StoreMismatch, WorkspaceError
from saekit.files import clean, is_leftover
from saekit.locks import lock, record_of
from saekit.names.site import Site
from saekit.progress import Bar, track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_log = logging.getLogger(__name__)


def write_store(
    path: str | Path,
    lm: LanguageModel,
    sites: Iterable[str | Site],
    corpus: Corpus,
    config: CacheConfig | None = None,
    *,
    progress: bool = True,
    **changes: Any,
) -> ActivationStore:
    """Write the activations of `corpus` at `sites`, all in one pass, to the folder `path`.

    The same call resumes after an interruption, and returns at once if the store is complete. A killed process loses the shard
    in progress; the result has the same bytes as without the interruption. A shard that is missing or too short is made again.
    To repair a damaged shard, move its file away and call again: its part is computed again, which needs the corpus and the model
    that the store was made from.

    Args:
        config: what to store, and how; fields of :class:`CacheConfig` may be given by name instead.
        progress: show a bar.

    Raises:
        StoreMismatch: `path` holds activations of something else; the message names what differs.
        UnknownSite, ContextTooLong, ConfigError, CorpusError: what is asked for cannot be done. Nothing is written.
        NonFiniteActivations: the model gives NaN or infinity, or more than the dtype holds. Complete shards are kept.
        StorageFull: the disk is full. Complete shards are kept.
        WorkspaceError: another process is writing to `path`.
    """
    config = dataclasses.replace(config or CacheConfig(), **changes)
    wanted = sorted({lm.site(site) for site in sites})
    config.check(lm, wanted)
    job = _Job(Path(path), lm, wanted, corpus, config)
    manifest = job.begin()
    if not job.finished(manifest):
        check_documents(lm, corpus, config.train_on)
        with _writing(job.path):
            manifest = job.begin()  # another process may have written since
            job.clear(manifest)
            job.run(manifest, progress)
    if config.n_tokens is not None and manifest.n_tokens < config.n_tokens:
        _log.warning(
            "%s has only %d of the %d tokens asked for; each is stored once.%s",
            corpus.source,
            manifest.n_tokens,
            config.n_tokens,
            " A mixture ends where its first source ends." if len(corpus.parts) > 1 else "",
        )
    return ActivationStore.open(job.path)


def check_settings(
    lm: LanguageModel, sites: Iterable[str | Site], corpus: Corpus, config: CacheConfig | None = None, **changes: Any
) -> None:
    """Check what :func:`write_store` is to do, without writing. Reads up to the first text of the corpus.

    Raises:
        UnknownSite, ContextTooLong, ConfigError, CorpusError: what is asked for cannot be done.
    """
    config = dataclasses.replace(config or CacheConfig(), **changes)
    config.check(lm, [lm.site(site) for site in sites])
    check_documents(lm, corpus, config.train_on)


class _Job(StorePlan):
    """A store that is being written."""

    def __init__(self, path: Path, lm: LanguageModel, sites: Sequence[Site], corpus: Corpus, config: CacheConfig) -> None:
        super().__init__(lm, sites, corpus, config)
        self.path = path

    def begin(self) -> Manifest:
        """The manifest of the store, or a new one.

        Raises:
            StoreMismatch: the folder holds other activations, or something else.
        """
        if (self.path / FILE).exists():
            manifest = Manifest.load(self.path)
            manifest.provenance.setdefault("bos", self.lm.text.has_bos)  # the only way before there was a choice
            if "chat_template_sha256" in manifest.provenance:  # its corpus holds chats: no need to read it
                self.provenance |= template_facts(self.lm)
            self._adopt_revision(manifest)
            manifest.require(self.provenance, self.path)
            return manifest
        if self.path.exists() and not self.path.is_dir():
            raise StoreMismatch(f"{self.path} is a file.", "Choose a folder.")
        # A process that is killed before its first shard is entered may leave this shard and temporary files.
        names = sorted(file.name for file in self.path.iterdir()) if self.path.exists() else []
        if others := [name for name in names if name not in (shard_name(0), record_of(self.path).name) and not is_leftover(name)]:
            raise StoreMismatch(f"{self.path} holds {others[0]!r}, and no activations.", "Choose another folder.")
        if self.corpus.has_chats:
            self.provenance |= template_facts(self.lm)
        return Manifest(self.provenance)

    def _adopt_revision(self, manifest: Manifest) -> None:
        """Record the commits of data sets on the hub in a store that was written without them, if its tokens are the same.

        Raises:
            StoreMismatch: they are not.
        """
        here, asked = manifest.provenance["corpus"], self.provenance["corpus"]
        new = {key: asked[key] for key in asked if key.endswith("revision") and key not in here}
        if not any(key.endswith("hub") for key in here) or not new:
            return
        known = {**manifest.provenance, "corpus": {**here, **new}}
        dataclasses.replace(manifest, provenance=known).require(self.provenance, self.path)
        stored, made = hashlib.sha256(), hashlib.sha256()
        for block in ActivationStore(self.path, manifest).stream([], batch_tokens=2**16):
            stored.update(block.tokens_N.numpy().astype("<i8").tobytes())
        for batch in self.batches(BEGINNING, manifest.n_tokens) if manifest.n_tokens else ():
            made.update(batch.tokens_BT[batch.mask_BT].numpy().astype("<i8").tobytes())
        if stored.digest() != made.digest():
            raise StoreMismatch(
                f"{self.path} does not record its commit of {self.corpus.source}, and its tokens are not those of "
                f"{', '.join(commit[:8] for commit in new.values())}.",
                "Choose another folder, or name the commit that it is from: --data-revision.",
            )
        manifest.provenance["corpus"].update(new)
        with _writing(self.path):
            manifest.save(self.path)

    def finished(self, manifest: Manifest) -> bool:
        """Whether the store is complete and every shard is there."""
        return manifest.complete and not any(damaged(self.path, entry) for entry in manifest.shards)

    def clear(self, manifest: Manifest) -> None:
        """Remove temporary files, and shards without an entry, that a killed process left."""
        entered = {entry.file for entry in manifest.shards}
        clean(self.path)
        for file in self.path.iterdir():
            if is_shard_name(file.name) and file.name not in entered:
                file.unlink()

    def run(self, manifest: Manifest, progress: bool) -> None:
        """Make the shards that were lost, then the remaining ones."""
        lost = [index for index, entry in enumerate(manifest.shards) if damaged(self.path, entry)]
        with track("caching", total=self.config.n_tokens, subject="activations", enabled=progress) as bar:
            for index in lost:
                self._fill(manifest, index, manifest.shards[index].tokens, bar)
            if not manifest.complete:
                left = None if self.config.n_tokens is None else self.config.n_tokens - manifest.n_tokens
                if left != 0:
                    self._fill(manifest, len(manifest.shards), left, bar)
                manifest.complete = True
                manifest.save(self.path)
            bar.end(manifest.n_tokens)

    def _fill(self, manifest: Manifest, first: int, count: int | None, bar: Bar) -> None:
        """Write `count` rows from the beginning of shard `first` on: one lost shard again, or all remaining shards."""
        start = manifest.shards[first - 1].after if first else BEGINNING
        done = sum(entry.tokens for entry in manifest.shards[:first])
        shard_tokens = self.shard_tokens if first == len(manifest.shards) else manifest.shards[first].tokens

        shards = ShardLayout(self.path, first, shard_tokens, self.dtype, self.lm.special_ids)
        with contextlib.closing(prefetch(self.batches(start, count), depth=4)) as batches:
            passes = self._passes(batches, done, bar)
            with contextlib.closing(write_shards(passes, shards)) as entries:
                for index, entry in enumerate(entries, start=first):
                    self._enter(manifest, index, entry)

    def _passes(
        self, batches: Iterable[TokenBatch], done: int, bar: Bar
    ) -> Iterator[tuple[TokenBatch, Mapping[Site, torch.Tensor]]]:
        """The batches and their activations."""
        for batch in batches:
            # Pads are on the right, after every real token, so that causal attention needs no mask for them.
            yield batch, self.lm.run(batch.tokens_BT, read=self.sites, logits=None).acts
            done += batch.n_tokens
            bar.update(done, note=self.path.name)

    def _enter(self, manifest: Manifest, index: int, entry: ShardEntry) -> None:
        """Record a shard in the manifest. If that fails, remove the shard."""
        before = list(manifest.shards)
        manifest.shards[index : index + 1] = [entry]
        try:
            manifest.save(self.path)
        except BaseException:
            manifest.shards = before
            (self.path / entry.file).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold a lock on the folder. A new folder is removed if nothing was completed in it."""
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path, WorkspaceError(f"Another process is writing to {path}.", "Wait for it to end.")):
            yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # not empty: something was completed
                path.rmdir()
