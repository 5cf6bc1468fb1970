"""Writes features in the format of another tool: a folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_db.exchange.formats import FORMATS, Export, Written
from feature_db.exchange.names import Names
from saekit import files
from saekit.errors import ConfigError, UnknownRef, Unwritable, shown_path
from saekit.progress import track

if TYPE_CHECKING:
    from feature_db.db import FeatureDB
    from feature_db.records import IndexedSAE


def export(
    database: FeatureDB,
    folder: str | Path,
    format: str,
    *,
    features: Mapping[str, Sequence[int] | None] | None = None,
    model: str | None = None,
    set: str | None = None,
    activations: Callable[[IndexedSAE], tuple[Any, Any, Any]] | None = None,
    progress: bool = True,
) -> list[Written]:
    """Write features in a format of :data:`feature_db.exchange.FORMATS`.

    The memory that it takes does not depend on the number of features. The folder appears when everything is written.

    Args:
        database: the features.
        folder: to be made; it must not exist, or be empty.
        format: name of the format.
        features: for each dictionary, by its address, the numbers of the features, or None for all; None: everything.
        model: what the other tool calls the model.
        set: what the other tool calls the set of dictionaries; only for a single dictionary.
        activations: returns the store, the dictionary and the model of an indexed dictionary, for formats that need them.
        progress: show a progress bar.

    Returns:
        What was written, for each dictionary.

    Raises:
        ConfigError: there is no such format, a name cannot be used, or two dictionaries would have the same name.
        UnknownSite, UnknownRef: a dictionary or a feature does not exist.
        Unwritable, StorageFull: the folder cannot be written, or holds something.
        WorkspaceError: the format needs activations, and the workspace has no store.
    """
    write = FORMATS.find(format).writer()
    path = Path(folder).absolute()
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise Unwritable(f"{shown_path(path)} exists.", "Give a folder that does not exist yet.")
    jobs = [
        (sae, numbers, Names.of(sae, model=model, set=set)) for sae, numbers in _chosen(database, features)
    ]  # before anything is written, so that a mistake leaves nothing behind
    _distinct(jobs)
    written = []
    try:
        with (
            files.temporary_folder(path.parent) as temporary,
            track("exporting", sum(len(numbers) for _, numbers, _ in jobs), unit="features", enabled=progress) as bar,
        ):
            inner = temporary / "export"
            inner.mkdir()
            job = None
            for sae, numbers, names in jobs:
                done = 0 if job is None else job.done + len(job.numbers)
                job = Export(database, sae, numbers, names, inner, bar, done, activations)
                written.append(write(job))
                bar.update(done + len(numbers))
            if path.exists():
                path.rmdir()
            files.replace(inner, path)
    except OSError as error:
        raise files.unwritable(path, error) from error
    return written


def _chosen(database: FeatureDB, features: Mapping[str, Sequence[int] | None] | None) -> list[tuple[IndexedSAE, Sequence[int]]]:
    """The dictionaries with the numbers of their features, ascending."""
    found: list[tuple[IndexedSAE, Sequence[int]]] = []
    asked = features if features is not None else dict.fromkeys(sae.dictionary for sae in database.saes())
    for address, numbers in asked.items():
        sae = database.dictionary(address)
        for number in numbers or ():
            if not 0 <= number < sae.n_features:
                raise UnknownRef(
                    f"There is no feature {number}: {sae.dictionary} has {sae.n_features} features.",
                    f"Choose features from 0 to {sae.n_features - 1}.",
                )
        found.append((sae, range(sae.n_features) if numbers is None else sorted({*numbers})))
    if not any(len(numbers) for _, numbers in found):
        raise ConfigError("There is no feature to export.", "Index a dictionary first, or name features that exist.")
    return found


def _distinct(jobs: Sequence[tuple[IndexedSAE, Sequence[int], Names]]) -> None:
    seen: dict[Names, str] = {}
    for sae, _, names in jobs:
        if names in seen:
            raise ConfigError(
                f"{seen[names]} and {sae.dictionary} would both be called {names.model}/{names.source}.",
                "Export them one at a time (--site), with different names of the set (--set).",
            )
        seen[names] = sae.dictionary
