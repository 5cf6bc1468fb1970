"""Indexes dictionaries: one streaming pass over activations for all of them, then the rows of their features."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_db.db import FeatureDB
from feature_db.index.accumulators import BuildConfig
from feature_db.index.projection import promoted, to_residual
from feature_db.index.rows import Rows
from feature_db.index.streaming import CHECKPOINT_SECONDS, Checkpoint, Counted, Store, count
from feature_db.index.terms import Stats
from feature_db.index.words import Vocabulary, Words
from feature_db.index.write import Entry, write
from feature_db.search.arrays import SUFFIXES
from feature_db.store import connections, current
from feature_db.store.vectors import write as write_vectors
from saekit import collective, files
from saekit.activations.loader.source import HELDOUT, Split, check_split, in_split
from saekit.errors import ConfigError, DatabaseError, StoreMismatch
from saekit.names.address import Address
from saekit.names.dictionary import stem
from saekit.names.site import Site
from saekit.names.site_map import SiteMap

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.sae import SAE

# Part of a build's key. Raise the first number when the same inputs give other rows.
_METHOD = [4, 2]


@dataclass(frozen=True)
class Subject:
    """A dictionary to index."""

    sae: SAE
    """A feature fires where its activation is positive. The features of an AbsTopK dictionary fire in two directions: all their
    statistics and examples are those of the magnitude |activation|."""
    site: str | Site
    """The site that the dictionary reads."""
    name: str = ""
    """Of the dictionary among others with its sites; empty for the default one. The build takes the place of the earlier one of
    the same sites and name."""
    source: str | Path | None = None
    """Folder that `sae` was loaded from. Its checksums are stored, to detect later that it holds another dictionary."""

    @property
    def address(self) -> Address:
        """Its sites and name."""
        site = Site.parse(self.site)
        return Address(SiteMap.parse(site, self.sae.writes_at(site) if self.sae.cfg.transcodes else None), self.name)


def build(
    path: str | Path,
    *,
    store: Store,
    sae: SAE,
    lm: LanguageModel,
    site: str | Site,
    vectors: str | Path,
    name: str = "",
    source: str | Path | None = None,
    **settings: Any,
) -> FeatureDB:
    """Index the features of one dictionary, `sae` at `site`, into the database at `path`; see :func:`build_all`.

    Args:
        sae, site, name, source: see :class:`Subject`.
        store, lm, vectors, settings: see :func:`build_all`.
    """
    return build_all(path, [Subject(sae, site, name, source)], store=store, lm=lm, vectors=vectors, **settings)


def build_all(
    path: str | Path,
    subjects: Sequence[Subject],
    *,
    store: Store,
    lm: LanguageModel,
    vectors: str | Path,
    split: Split = "all",
    heldout: float = HELDOUT,
    config: BuildConfig | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = True,
) -> FeatureDB:
    """Index the features of dictionaries into the database at `path`.

    The store is read once, in order, for all of them; the rows are those that single builds would give. The statistics need the
    same memory for any number of tokens. Special tokens (BOS, EOS, pads) are left out of all statistics. After an interruption,
    the same call continues from the last checkpoint, a file next to the database, and gives the same rows. Features of other
    dictionaries stay. The database changes in one transaction for each dictionary, at the end. Where it already holds a build,
    nothing is done.

    Lists and labels by people and models are never lost. Those of the same dictionary stay. Those of the dictionary that this
    one replaces are set aside and return when that dictionary is indexed again.

    Processes that torchrun started share the work, and the rows are those of one process. The first process writes them.

    Args:
        path: the SQLite file, created if it does not exist.
        subjects: the dictionaries.
        store: activations at their sites: an :class:`saekit.activations.ActivationStore`, or
            :class:`saekit.activations.ComputedActivations`, which the model computes without a store.
        lm: the model. Its tokenizer gives the texts of tokens, its head the promoted tokens.
        vectors: folder of the decoder directions, one memory-mapped .npy per dictionary.
        split: count the tokens of "all" documents, of those that a reader trains on ("train") or of the "heldout" ones.
        heldout: share of documents that are held out.
        config: how much is kept for each feature, and the label methods.
        checkpoint_seconds: seconds of work that an interruption may cost; 0 saves after every block.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no dictionary, or two have one address.
        StoreMismatch: store, model and dictionary do not fit together.
        NonFiniteActivations: an activation is NaN or infinite.
        UnknownSite: the store has no such site.
        DatabaseError: the file at `path` is no feature database, is damaged, or is of a newer version.
        StorageFull: the disk is full; the database keeps its previous state.
        ParallelError: another process of those that torchrun started has ended.
    """
    check_split(split, heldout)
    path, folder, config = Path(path), Path(vectors), config or BuildConfig()
    _check(subjects, store)
    counted = split if split == "all" else f"{split} {heldout}"
    corpus = {"store": store.provenance, "rows": store.n_tokens, "split": counted}
    entries = [_entry(corpus, each, lm, path.absolute(), folder.absolute(), config) for each in subjects]
    missing = collective.first(lambda: [n for n, entry in enumerate(entries) if not (path.exists() and _is_done(path, entry))])
    more = f"-and-{len(subjects) - 1}-more" if len(subjects) > 1 else ""
    state = path.with_name(f"{path.name}.{stem(entries[0].address.place, entries[0].address.name)}{more}.state.npz")
    if missing:
        vocabulary = Vocabulary.of(lm.token_strings(range(lm.vocab_size)))
        words = Words(vocabulary, lm.decode)
        counts = [
            Counted.start(entries[n].key, subjects[n].sae, Site.parse(subjects[n].site), len(vocabulary), config) for n in missing
        ]
        checkpoint = Checkpoint(state, checkpoint_seconds)
        count(store, counts, lambda document: in_split(document, split, heldout), words, checkpoint, progress)

        def write_all() -> None:
            for n, each in zip(missing, counts):
                rows = Rows(each.accumulators, words, _projector(lm, each.sae, each.site))
                _write(path, entries[n], subjects[n], rows)

        collective.first(write_all)
    database = FeatureDB.open(path)
    collective.first(lambda: _finish(database, path, entries, state))
    return database


def _check(subjects: Sequence[Subject], store: Store) -> None:
    """Raise where the dictionaries cannot be indexed together from the store."""
    if not subjects:
        raise ConfigError("There is no dictionary to index.", "Give at least one.")
    addresses = [each.address for each in subjects]
    if twice := [address for n, address in enumerate(addresses) if address in addresses[:n]]:
        raise ConfigError(f"{twice[0]} is given twice.", "Give each dictionary once.")
    for each in subjects:
        reads, width = each.sae.cfg.d_in, store.width(Site.parse(each.site))
        if width != reads:
            raise StoreMismatch(
                f"The dictionary reads {reads} numbers a token; the store has {width} at {each.site}.",
                "Give the dictionary that was trained there.",
            )


def _write(path: Path, entry: Entry, subject: Subject, rows: Rows) -> None:
    """Write the decoder directions and the rows of a dictionary."""
    directions = subject.sae.feature_vectors().detach().float().cpu().numpy()
    entry.files["vectors"] = write_vectors(path.parent / entry.vectors, directions)
    if subject.source is not None:
        entry.files.update(current.recorded(Path(subject.source)))
    write(path, entry, rows)


def _finish(database: FeatureDB, path: Path, entries: Sequence[Entry], state: Path) -> None:
    """Write the words of features, and remove files that are no longer used."""
    leftovers = [state]
    for entry in entries:
        database.write_words(entry.address)
        leftovers += _unused((path.parent / entry.vectors).parent, entry.address.site, database)
    files.remove(*leftovers)


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
    found = [file for ending in (".npy", *SUFFIXES) for file in folder.glob(f"{site}-*{ending}")]
    return [file for file in found if file.resolve() not in used]


def _entry(corpus: dict[str, Any], subject: Subject, lm: LanguageModel, path: Path, folder: Path, config: BuildConfig) -> Entry:
    """What is written about a dictionary besides its features; `path` and `folder` are absolute."""
    model, sae, address = lm.fingerprint(), subject.sae, subject.address
    corpus = corpus | {"tokenizer": model["tokenizer"]}
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


def _projector(lm: LanguageModel, sae: SAE, site: Site) -> Callable[[Sequence[int]], Sequence[Stats]]:
    """A function from feature numbers to promoted and suppressed tokens; empty if the site does not write to the residual."""
    out = sae.writes_at(site)

    def project(numbers: Sequence[int]) -> Sequence[Stats]:
        resid = to_residual(lm, out, sae.feature_vectors(list(numbers)).detach()) if numbers else None
        return () if resid is None else promoted(lm, resid)

    return project
