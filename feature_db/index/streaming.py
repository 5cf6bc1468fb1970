"""The pass over the activations: every block is read once, and counted by every dictionary.

Processes that torchrun started share the pass. Each computes the codes of its part of the blocks; all exchange the codes, and
each counts all blocks, in order, for its part of the features. So every statistic of a feature is made from the same numbers in
the same order as in one process, and the result is equal bit for bit. The first process collects the statistics.
"""

from __future__ import annotations

import itertools
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from feature_db.index.accumulators import Accumulators, Block, BuildConfig
from feature_db.index.words import Words
from saekit import collective, files, processes
from saekit.errors import NonFiniteActivations, ParallelError
from saekit.names.site import Site
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.sae import SAE

Code = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Values and features, both (N, K)."""
Wanted = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which documents are counted."""
CHECKPOINT_SECONDS = 10.0
"""Seconds of work that a crash costs."""


class Store(Protocol):
    """The part of :class:`saekit.activations.StoredActivations` that a build uses."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    def width(self, site: Any) -> int: ...
    def stream(self, sites: Any, *, batch_tokens: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Any]: ...


@dataclass
class Counted:
    """A dictionary and its statistics."""

    key: str
    """Of the build."""
    sae: SAE
    site: Site
    accumulators: Accumulators

    @classmethod
    def start(cls, key: str, sae: SAE, site: Site, vocab_size: int, config: BuildConfig) -> Counted:
        """The dictionary with empty statistics; in several processes, with those of the features of this one."""
        F = sae.cfg.n_latents
        own = _own(F, processes.rank()) if collective.connected() else None
        return cls(key, sae, site, Accumulators(F, vocab_size, config, own))

    def code(self, read: Any) -> Code:
        """The code of a block of the store.

        Raises:
            NonFiniteActivations: an activation is not finite.
        """
        acts = read.acts[self.site]
        if not bool(acts.isfinite().all()):
            row = int((~acts.isfinite().all(1)).nonzero()[0, 0])
            raise _not_finite(read, row, f"an activation at {self.site}")
        code = self.sae.encode_sparse(acts.to(self.sae.W_dec.device))
        values = code.values.abs() if self.sae.cfg.activation_function.signed else code.values
        return np.ascontiguousarray(values.float().cpu().numpy()), np.ascontiguousarray(code.indices.cpu().numpy())


@torch.no_grad()
def count(
    store: Store, dictionaries: Sequence[Counted], wanted: Wanted, words: Words, checkpoint: Checkpoint, progress: bool
) -> None:
    """Read the store once and count it for all dictionaries. Afterwards the first process has the statistics of all features.

    Args:
        store: activations at the sites of all dictionaries.
        dictionaries: their statistics are filled.
        wanted: which documents to count.
        words: of the store's tokens.
        checkpoint: where the state is saved, and where the pass goes on.
        progress: show a bar.

    Raises:
        NonFiniteActivations: an activation is NaN or infinite.
        ParallelError: another process has ended.
    """
    row = checkpoint.load(words, dictionaries)
    sites = sorted({each.site for each in dictionaries})
    rank, world = (processes.rank(), processes.world()) if collective.connected() else (0, 1)
    batch_tokens = dictionaries[0].accumulators.config.batch_tokens
    with track("indexing", total=store.n_tokens, subject=", ".join(map(str, sites)), enabled=progress and rank == 0) as bar:
        bar.update(row)
        if row < store.n_tokens:
            blocks = store.stream(sites, batch_tokens=batch_tokens, start=row, part=(rank, world))
            while group := list(itertools.islice(blocks, world)):
                for read, codes in zip(group, _codes(group, dictionaries, rank)):
                    _add(read, codes, dictionaries, wanted, words)
                row = group[-1].start + len(group[-1].tokens_N)
                bar.update(row)
                checkpoint.save(row, words, dictionaries)
    for each in dictionaries:
        each.accumulators = _collected(each)
        each.accumulators.finish()


def _codes(group: Sequence[Any], dictionaries: Sequence[Counted], rank: int) -> list[list[Code]]:
    """The codes of a group of blocks, one block for each process: for each block those of all dictionaries."""
    own = [each.code(group[rank]) for each in dictionaries] if rank < len(group) else []
    if not collective.connected():
        return [own]
    empty = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int64)
    found: list[list[Code]] = [[] for _ in group]
    for n in range(len(dictionaries)):
        values, indices = own[n] if own else empty
        flat = [torch.from_numpy(values).flatten(), torch.from_numpy(indices).flatten().int()]
        gathered = collective.gather(torch.tensor([values.shape[1]]), *flat)
        for block, k, v, i in zip(found, *gathered):
            block.append((v.numpy().reshape(-1, int(k)), i.numpy().astype(np.int64).reshape(-1, int(k))))
    return found


def _add(read: Any, codes: Sequence[Code], dictionaries: Sequence[Counted], wanted: Wanted, words: Words) -> None:
    """Count a block for all dictionaries."""
    tokens = read.tokens_N.numpy().astype(np.int32)
    position, document = read.position_N.numpy().astype(np.int32), read.document_N.numpy().astype(np.int64)
    ordinary = ~read.special_N.numpy()
    counted = ordinary & wanted(document)
    canonical = words.vocabulary.canonical[tokens]
    reading = words.read(tokens, position, document, counted, ordinary)
    for each, (values, indices) in zip(dictionaries, codes):
        block = Block(read.start, tokens, canonical, position, document, counted, values, indices)
        wrong = each.accumulators.add(block, reading)
        if wrong >= 0:
            raise _not_finite(read, wrong, f"a feature of {each.site}")


def _not_finite(block: Any, row: int, what: str) -> NonFiniteActivations:
    place = f"document {int(block.document_N[row])}, position {int(block.position_N[row])}"
    return NonFiniteActivations(
        f"Row {block.start + row} of the store ({place}) has {what} that is not finite.",
        "Check the store with `saekit verify`, and the dictionary's weights.",
    )


# Statistics of several processes


def _own(n_features: int, rank: int) -> range:
    """The features that a process counts."""
    world = processes.world()
    return range(n_features * rank // world, n_features * (rank + 1) // world)


def _collected(dictionary: Counted) -> Accumulators:
    """The statistics of all features of a dictionary in the first process, and those of its own features in the others."""
    own = dictionary.accumulators
    if not collective.connected():
        return own
    with collective.answering():
        if processes.rank():
            for array in own.of_features().values():
                dist.send(_bytes(array), 0)
            return own
        F = dictionary.sae.cfg.n_latents
        whole = Accumulators(F, len(own.token_count), own.config)
        whole.load_part(own.state(), _own(F, 0))
        for rank in range(1, processes.world()):
            for name, array in whole.of_features().items():
                dist.recv(_bytes(array[whole.rows(name, _own(F, rank))]), rank)
    return whole


def _bytes(array: NDArray[Any]) -> torch.Tensor:
    """The bytes of a contiguous array, not copied."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


class Checkpoint:
    """The progress and statistics of a pass, saved from time to time in a file.

    Args:
        path: the file. It holds the statistics of all features, so another number of processes can go on from it.
        seconds: of work that a crash may cost; 0 saves after every block.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._last, self._cost = time.monotonic(), 0.0

    def load(self, words: Words, dictionaries: Sequence[Counted]) -> int:
        """Restore the state of the dictionaries, if the file holds all of them. Returns the row to continue from.

        Raises:
            ParallelError: not all processes can read the file.
        """
        row = self._load(words, dictionaries)
        if collective.first(lambda: row) != row:
            raise ParallelError(f"{self._path} is not the same for all processes.", "Give them one folder.")
        return row

    def _load(self, words: Words, dictionaries: Sequence[Counted]) -> int:
        try:
            if not zip_holds_what_it_declares(self._path):
                return 0
            with np.load(self._path, allow_pickle=False) as stored:
                keys = stored["keys"].tolist()
                parts = [f"{keys.index(each.key)}/" for each in dictionaries]
                state = {name: stored[name] for name in stored.files if name.startswith(("words/", "row", *parts))}
        # NumPy and zipfile raise many kinds of errors for damage. The pass can start again, so none of them matters.
        except Exception:
            return 0
        of_words = _under("words/", state)
        states = [_under(part, state) for part in parts]
        fit = all(each.accumulators.fits(own) for each, own in zip(dictionaries, states))
        if not (fit and words.fits(of_words) and "row" in state):
            return 0
        words.load_state(of_words)
        for each, own in zip(dictionaries, states):
            each.accumulators.load_state(own)
        return int(state["row"])

    def save(self, row: int, words: Words, dictionaries: Sequence[Counted]) -> None:
        """Save if enough time has passed, so that a crash costs no more than the seconds given, saving included.

        Where saving takes more than a fifth of them, as for very large dictionaries, it happens less often: a crash costs up to
        five times what saving takes.
        """
        if not collective.first(self._due):
            return
        begun = time.monotonic()
        whole = [_collected(each) for each in dictionaries]
        if processes.leads():
            state = {f"words/{name}": array for name, array in words.state().items()}
            for n, accumulators in enumerate(whole):
                state |= {f"{n}/{name}": array for name, array in accumulators.state().items()}
            keys = np.array([each.key for each in dictionaries])
            with files.whole(self._path) as file:
                np.savez(file, keys=keys, row=np.array(row), **state)  # type: ignore[arg-type]
        self._last = time.monotonic()
        self._cost = self._last - begun

    def _due(self) -> bool:
        return time.monotonic() - self._last >= max(self._seconds - self._cost, 4 * self._cost if self._seconds else 0.0)


def _under(prefix: str, state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def zip_holds_what_it_declares(path: Path) -> bool:
    """Whether the members of an uncompressed zip archive are no larger than the archive, so that reading them is safe."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    return stored and sum(member.file_size for member in members) <= path.stat().st_size
