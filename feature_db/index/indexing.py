"""Indexes a dictionary: one streaming pass over a store of activations, then the rows of its features."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from feature_db.db import FeatureDB
from feature_db.index.accumulators import Accumulators, Block, BuildConfig
from feature_db.index.projection import promoted, to_residual
from feature_db.index.rows import Rows
from feature_db.index.words import Vocabulary, Words
from feature_db.index.write import Entry, write
from feature_db.labels.evidence import TermStat
from feature_db.meaning.files import SUFFIX as WORDS
from feature_db.store import connections, current
from feature_db.store.vectors import write as write_vectors
from saekit import files
from saekit.activations.loader.source import HELDOUT, Split, check_split, in_split
from saekit.errors import DatabaseError, NonFiniteActivations, StoreMismatch
from saekit.names.address import Address
from saekit.names.dictionary import stem
from saekit.names.site import Site
from saekit.names.site_map import SiteMap
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

# Part of a build's key. Raise the first number when the same inputs give other rows.
_METHOD = [2, 2]


class Store(Protocol):
    """The part of :class:`saekit.activations.StoredActivations` that a build uses."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    def width(self, site: Any) -> int: ...
    def stream(self, sites: Any, *, batch_tokens: int, start: int = 0) -> Iterator[Any]: ...


def build(
    path: str | Path,
    *,
    store: Store,
    sae: SAE,
    lm: LanguageModel,
    site: str | Site,
    vectors: str | Path,
    name: str = "",
    split: Split = "all",
    heldout: float = HELDOUT,
    config: BuildConfig | None = None,
    source: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> FeatureDB:
    """Index the features of `sae` at `site` into the database at `path`.

    The store is read once, in order. The statistics need the same memory for any number of tokens. Special tokens (BOS, EOS,
    pads) are left out of all statistics. After an interruption, the same call continues from the last checkpoint, a file next to
    the database, and gives the same rows. Features of other dictionaries stay. The database changes in one transaction at the
    end. If the database already holds this build, nothing is done.

    Lists and labels by people and models are never lost. Those of the same dictionary stay. Those of the dictionary that this
    one replaces are set aside and return when that dictionary is indexed again.

    Args:
        path: the SQLite file, created if it does not exist.
        store: activations at `site`.
        sae: the dictionary. A feature fires where its activation is positive. The features of an AbsTopK dictionary fire in two
            directions: all their statistics and examples are those of the magnitude |activation|.
        lm: the model. Its tokenizer gives the texts of tokens, its head the promoted tokens.
        site: the site that the dictionary reads.
        vectors: folder of the decoder directions, one memory-mapped .npy per dictionary.
        name: of the dictionary among others with its sites; empty for the default one. The build takes the place of the earlier
            one of the same sites and name.
        split: count the tokens of "all" documents, of those that a reader trains on ("train") or of the "heldout" ones.
        heldout: share of documents that are held out.
        config: how much is kept for each feature, and the label methods.
        source: folder that `sae` was loaded from. Its checksums are stored, to detect later that it holds another dictionary.
        checkpoint_seconds: seconds of work that an interruption may cost; 0 saves after every block.
        progress: show a progress bar.

    Raises:
        StoreMismatch: store, model and dictionary do not fit together.
        NonFiniteActivations: an activation is NaN or infinite.
        UnknownSite: the store has no such site.
        DatabaseError: the file at `path` is no feature database, is damaged, or is of a newer version.
        StorageFull: the disk is full; the database keeps its previous state.
    """
    check_split(split, heldout)
    path, folder, site, config = Path(path), Path(vectors), Site.parse(site), config or BuildConfig()
    if store.width(site) != sae.cfg.d_in:
        raise StoreMismatch(
            f"The dictionary reads {sae.cfg.d_in} numbers a token; the store has {store.width(site)} at {site}.",
            "Give the dictionary that was trained there.",
        )
    counted = split if split == "all" else f"{split} {heldout}"
    place = SiteMap.parse(site, sae.writes_at(site) if sae.cfg.transcodes else None)
    entry = _entry(store, sae, lm, Address(place, name), path.absolute(), folder.absolute(), counted, config)
    if path.exists() and _is_done(path, entry):
        database = FeatureDB.open(path)
        database.write_words(entry.address)
        return database
    vocabulary = Vocabulary.of(lm.token_strings(range(lm.vocab_size)))
    words = Words(vocabulary, lm.decode)
    accumulators = Accumulators(sae.cfg.n_latents, len(vocabulary), config)
    state = path.with_name(f"{path.name}.{stem(place, name)}.state.npz")
    _pass(
        store,
        sae,
        site,
        lambda document: in_split(document, split, heldout),
        words,
        accumulators,
        _Checkpoint(state, entry.key, checkpoint_seconds),
        progress,
    )
    rows = Rows(accumulators, words, _projector(lm, sae, site))
    file = path.parent / entry.vectors
    entry.files["vectors"] = write_vectors(file, sae.feature_vectors().detach().float().cpu().numpy())
    if source is not None:
        entry.files.update(current.recorded(Path(source)))
    write(path, entry, rows)
    database = FeatureDB.open(path)
    database.write_words(entry.address)
    for leftover in [state, *_unused(file.parent, site, database)]:
        files.remove(leftover)
    return database


def _is_done(path: Path, entry: Entry) -> bool:
    """Whether the database holds this build, undamaged. Records the checksum if an interrupted change left none."""
    with FeatureDB.open(path) as database:
        if not database.holds(entry.address, entry.key):
            return False
        try:
            sealed = database.sealed(entry.address)
        except DatabaseError:
            return False
    if not sealed:
        connections.seal(path)
    return True


def _unused(folder: Path, site: Site, database: FeatureDB) -> list[Path]:
    """Files of the dictionaries that this site had earlier."""
    used = {path.resolve() for path in database.vector_files()}
    found = [*folder.glob(f"{site}-*.npy"), *folder.glob(f"{site}-*{WORDS}")]
    return [file for file in found if file.resolve() not in used]


def _entry(
    store: Store, sae: SAE, lm: LanguageModel, address: Address, path: Path, folder: Path, split: str, config: BuildConfig
) -> Entry:
    """What is written about a dictionary besides its features; `path` and `folder` are absolute."""
    model = lm.fingerprint()
    corpus = {"store": store.provenance, "rows": store.n_tokens, "split": split, "tokenizer": model["tokenizer"]}
    corpus_key = _digest(corpus)
    fingerprint = sae.fingerprint()
    identity = {
        "method": _METHOD,
        "corpus": corpus_key,
        "sae": fingerprint,
        "model": model["model"],
        "site": str(address.site),
        "config": dataclasses.asdict(config),
        # Earlier versions counted the positive activations only.
        **({"of": "magnitudes"} if sae.cfg.activation_function.signed else {}),
    }
    file = folder / f"{address.site}-{fingerprint[:16]}.npy"
    return Entry(
        address=address,
        key=_digest(identity),
        fingerprint=fingerprint,
        model=model,
        architecture=sae.cfg.architecture,
        n_features=sae.cfg.n_latents,
        d_out=sae.cfg.d_out,
        vectors=os.path.relpath(file, path.parent),
        files={},
        corpus_key=corpus_key,
        corpus=corpus,
    )


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@torch.no_grad()
def _pass(
    store: Store,
    sae: SAE,
    site: Site,
    wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    words: Words,
    accumulators: Accumulators,
    checkpoint: _Checkpoint,
    progress: bool,
) -> None:
    row = checkpoint.load(words, accumulators)
    with track("indexing", total=store.n_tokens, subject=str(site), enabled=progress) as bar:
        bar.update(row)
        if row >= store.n_tokens:
            return
        signed = sae.cfg.activation_function.signed
        for read in store.stream([site], batch_tokens=accumulators.config.batch_tokens, start=row):
            tokens = read.tokens_N.numpy().astype(np.int32)
            acts = read.acts[site]
            if not bool(acts.isfinite().all()):
                row = int((~acts.isfinite().all(1)).nonzero()[0, 0])
                raise _not_finite(read, row, f"an activation at {site}")
            code = sae.encode_sparse(acts.to(sae.W_dec.device))
            document = read.document_N.numpy()
            counted = ~read.special_N.numpy() & wanted(document)
            block = Block(
                row=read.start,
                tokens=tokens,
                canonical=words.vocabulary.canonical[tokens],
                position=read.position_N.numpy().astype(np.int32),
                document=document.astype(np.int64),
                counted=counted,
                values=np.ascontiguousarray((code.values.abs() if signed else code.values).float().cpu().numpy()),
                indices=np.ascontiguousarray(code.indices.cpu().numpy()),
            )
            wrong = accumulators.add(block, words.read(block.tokens, block.position, block.document, counted))
            if wrong >= 0:
                raise _not_finite(read, wrong, f"a feature of {site}")
            row = read.start + len(block.tokens)
            bar.update(row)
            checkpoint.save(row, words, accumulators)


def _not_finite(block: Any, row: int, what: str) -> NonFiniteActivations:
    place = f"document {int(block.document_N[row])}, position {int(block.position_N[row])}"
    return NonFiniteActivations(
        f"Row {block.start + row} of the store ({place}) has {what} that is not finite.",
        "Check the store with `saekit verify`, and the dictionary's weights.",
    )


def _projector(lm: LanguageModel, sae: SAE, site: Site) -> Callable[[Sequence[int]], list[list[TermStat]]]:
    """A function from feature numbers to promoted and suppressed tokens; empty if the site does not write to the residual."""
    out = sae.writes_at(site)

    def project(numbers: Sequence[int]) -> list[list[TermStat]]:
        resid = to_residual(lm, out, sae.feature_vectors(list(numbers)).detach()) if numbers else None
        return [[] for _ in numbers] if resid is None else promoted(lm, resid)

    return project


class _Checkpoint:
    """The progress and statistics of a pass, saved from time to time in a file next to the database."""

    def __init__(self, path: Path, key: str, seconds: float) -> None:
        self._path, self._key, self._seconds = path, key, seconds
        self._last, self._cost = time.monotonic(), 0.0

    def load(self, words: Words, accumulators: Accumulators) -> int:
        """Restore the state of the same build, if there is one. Returns the row to continue from."""
        try:
            if not zip_holds_what_it_declares(self._path):
                return 0
            with np.load(self._path, allow_pickle=False) as stored:
                if str(stored["key"]) != self._key:
                    return 0
                state = dict(stored)
        # NumPy and zipfile raise many kinds of errors for damage. The pass can start again, so none of them matters.
        except Exception:
            return 0
        parts = {
            part: {name.removeprefix(part): array for name, array in state.items() if name.startswith(part)}
            for part in ("words/", "acc/")
        }
        if not (words.fits(parts["words/"]) and accumulators.fits(parts["acc/"]) and "row" in state):
            return 0
        words.load_state(parts["words/"])
        accumulators.load_state(parts["acc/"])
        return int(state["row"])

    def save(self, row: int, words: Words, accumulators: Accumulators) -> None:
        """Save if enough time has passed. Saving takes at most a twentieth of the work."""
        if self._seconds and time.monotonic() - self._last < max(self._seconds, 20 * self._cost):
            return
        begun = time.monotonic()
        state = {f"words/{name}": array for name, array in words.state().items()}
        state |= {f"acc/{name}": array for name, array in accumulators.state().items()}
        with files.whole(self._path) as file:
            np.savez(file, key=np.array(self._key), row=np.array(row), **state)  # type: ignore[arg-type]
        self._last = time.monotonic()
        self._cost = self._last - begun


def zip_holds_what_it_declares(path: Path) -> bool:
    """Whether the members of an uncompressed zip archive are no larger than the archive, so that reading them is safe."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    return stored and sum(member.file_size for member in members) <= path.stat().st_size
