"""What a user names as an SAE: a folder or file on disk, `release/sae_id` in sae-lens's list, or a repository on the hub."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saekit.errors import SAEFormatError, SAENotFound
from saekit.sae import files
from saekit.sae.assemble import assemble
from saekit.sae.config import dtype_name
from saekit.sae.files import Content
from saekit.sae.foreign.convert import convert, convert_listed
from saekit.sae.foreign.hub import Snapshot
from saekit.sae.foreign.layouts import SAE_LENS, detect, named_after
from saekit.sae.foreign.place import NoSuchFile, Place, on_disk
from saekit.sae.foreign.tensors import read_pickle
from saekit.sae.origin import KEY, Origin, record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saekit.sae.modules import SAE

_NATIVE = (files.CONFIG, files.WEIGHTS)
_BESIDE = (files.SPARSITY, files.SCALER, files.WHITENING)


@dataclass(frozen=True)
class Loaded:
    """A dictionary with what its files say besides the weights.

    Attributes:
        sae: the dictionary.
        origin: where it comes from, and what it was trained on.
        density_F: (F,) fractions of tokens on which latents fire, where the files have them.
    """

    sae: SAE
    origin: Origin
    density_F: Tensor | None


class Opened(NamedTuple):
    """The content of a source, and the densities (F,) where it has them."""

    content: Content
    density_F: Tensor | None
    where: str


def load_from(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Loaded:
    """Load an SAE with its origin and densities; arguments and errors are those of :meth:`saekit.sae.SAE.load`."""
    wanted = None if dtype is None else dtype_name(dtype)
    opened = open_source(source, wanted, revision)
    content = opened.content
    with files.in_folder(opened.where):
        sae: SAE = assemble(content if wanted is None else content._replace(raw=content.raw | {"dtype": wanted}))
    return Loaded(sae.to(device), Origin.of(sae.cfg), opened.density_F)


def open_source(source: str | Path, dtype: str | None = None, revision: str | None = None) -> Opened:
    """Find and read an SAE.

    Args:
        source: see :meth:`saekit.sae.SAE.load`.
        dtype: in which other layouts than sae-lens's are converted; None for float32.
        revision: of a repository on the hub; the same as `@revision` at the end of `source`.

    Raises:
        SAENotFound: there is no such folder, release, id or repository, or it cannot be fetched.
        SAEFormatError: the files are no SAE, or of a layout that cannot be converted.
    """
    if (path := files.find(source)) is not None:
        if revision is not None:
            raise SAENotFound(f"{path} is on disk, and has no revision {revision!r}.", "Leave the revision out.")
        return _on_disk(path, dtype)
    name = _split(source)
    if name.release:
        snapshot = Snapshot.of(name.repository, revision or name.revision)
        with snapshot.explaining():
            return _listed(name.release, name.sae_id, snapshot, name.path, dtype)
    snapshot = _repository(name, revision)
    with snapshot.explaining():
        place = snapshot.place(name.path)
        if listed := _find_listed(name.repository, place.whole_path):
            return _listed(*listed, snapshot, place.whole_path, dtype)
        return _read(place, dtype)


def _repository(name: _Name, revision: str | None) -> Snapshot:
    """The repository of a name that may as well be a misspelt release."""
    try:
        snapshot = Snapshot.of(name.repository, revision or name.revision)
        with snapshot.explaining():
            _ = snapshot.names  # asks the hub or the cache
        return snapshot
    except SAENotFound as error:
        release = name.repository.split("/")[0]
        near = difflib.get_close_matches(release, _directory(), n=3, cutoff=0.6)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        what = f"{error.what} There is no release {release!r} in sae-lens's list."
        raise SAENotFound(what, hint + (error.hint or "")) from error


def _on_disk(path: Path, dtype: str | None) -> Opened:
    if path.is_dir() and all((path / name).is_file() for name in _NATIVE):
        return _native(path)
    place = _identified(on_disk(path))
    with _unreadable(place.shown):
        if place.repository and (listed := _find_listed(place.repository, place.whole_path)):
            prefix = Path(place.path)
            known = _directory()[listed[0]].paths[listed[1]]

            def get(name: str) -> Path:
                relative = Path(name)
                return place.get(str(relative.relative_to(prefix)) if relative.is_relative_to(prefix) else name)

            assert known == place.whole_path
            converted = convert_listed(*listed, get, dtype or "float32", place.shown)
            return _with_origin(converted, place, f"{listed[0]}/{listed[1]}", _layout_of(place))
        return _read(place, dtype)


def _read(place: Place, dtype: str | None) -> Opened:
    """An SAE that sae-lens does not list, by its layout."""
    layout, entry = detect(place, lambda name: read_pickle(place.get(name), f"{place.shown}/{name}"))
    if layout == SAE_LENS:
        paths = {name: place.get(name) for name in place.names if name in (*_NATIVE, *_BESIDE)}
        opened = _native(paths[files.CONFIG].parent)
        if place.repository is None:
            return opened
        metadata = dict(opened.content.raw.get("metadata") or {})
        metadata[KEY] = record(layout=layout, repository=place.repository, path=place.path, revision=place.revision)
        return opened._replace(
            content=opened.content._replace(raw=opened.content.raw | {"metadata": metadata}), where=place.shown
        )
    if entry:
        place = replace(place, entry=entry)
    return _with_origin(convert(place, layout, dtype or "float32"), place, None, layout)


def _native(folder: Path) -> Opened:
    content = files.read(folder)
    F = content.raw.get("d_sae")
    return Opened(content, files.load_sparsity(folder, F if isinstance(F, int) else None), str(folder))


def _listed(release: str, sae_id: str, snapshot: Snapshot, path: str, dtype: str | None) -> Opened:
    shown = f"{release}/{sae_id}"
    converted = convert_listed(release, sae_id, snapshot.get, dtype or "float32", shown)
    place = Place(shown, (), snapshot.get, None, snapshot.repository.name, path, snapshot.commit)
    return _with_origin(converted, place, shown, named_after(_directory()[release].loader))


def _with_origin(converted: Any, place: Place, release: str | None, layout: str) -> Opened:
    raw, normalization = converted.content.raw, converted.normalization
    repository = place.repository
    facts = record(
        layout=layout,
        normalization=normalization if normalization != raw.get("normalize_activations") else None,
        repository=repository,
        path=place.whole_path if repository else None,
        revision=place.revision,
        release=release,
    )
    metadata = {**(raw.get("metadata") or {}), KEY: facts}
    return Opened(converted.content._replace(raw=raw | {"metadata": metadata}), converted.density_F, place.shown)


def _layout_of(place: Place) -> str:
    return detect(place, lambda name: read_pickle(place.get(name), place.shown))[0]


@contextmanager
def _unreadable(shown: str) -> Iterator[None]:
    try:
        yield
    except NoSuchFile as error:
        raise SAEFormatError(f"{shown} lacks the file {error}.", "Its copy is not complete.") from error
    except OSError as error:
        raise SAEFormatError(f"{shown} cannot be read: {error.strerror or error}.", "Check its files.") from error


def _identified(place: Place) -> Place:
    """A place on disk with its repository, where a folder above it is called like a repository in sae-lens's list."""
    if place.repository is not None:
        return place
    by_name = {row.repository.split("/")[1]: row.repository for row in _directory().values()}
    parts = place.path.split("/")
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] in by_name:
            return replace(place, repository=by_name[parts[i]], path="/".join(parts[i + 1 :]))
    return place


class _Name(NamedTuple):
    """A name that is no path on disk. Without a release it names a repository itself."""

    repository: str
    path: str
    revision: str | None
    release: str = ""
    sae_id: str = ""


def _split(source: str | Path) -> _Name:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    text, _, revision = str(source).partition("@")
    nothing = f"There is no folder {text!r}"
    parts = text.strip("/").split("/")
    if isinstance(source, Path) or text.startswith(("/", ".", "~")) or len(parts) < 2 or not all(parts):
        raise SAENotFound(
            f"{nothing}.", "Give a folder that holds an SAE, 'release/sae_id' of a published one, or 'owner/repository/folder'."
        )
    release, sae_id = text.split("/", 1)
    row = _directory().get(release)
    if row is None:
        if Path(parts[0]).exists():
            raise SAENotFound(f"{nothing}, although there is {parts[0]}.", "Give a folder that holds an SAE.")
        try:
            validate_repo_id("/".join(parts[:2]))
        except HFValidationError as error:
            raise SAENotFound(f"{nothing}, and {text!r} cannot name a repository on the hub.", "Check the name.") from error
        return _Name("/".join(parts[:2]), "/".join(parts[2:]), revision or None)
    if sae_id not in row.paths:
        raise SAENotFound(f"{nothing}, and the release {release!r} has no SAE {sae_id!r}.", _nearest(sae_id, list(row.paths)))
    return _Name(row.repository, row.paths[sae_id], revision or None, release, sae_id)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {len(known)} others, such as {known[0]}."


def _find_listed(repository: str, path: str) -> tuple[str, str] | None:
    """Release and id in sae-lens's list of a path in a repository."""
    for release, row in _directory().items():
        if row.repository == repository:
            for sae_id, each in row.paths.items():
                if each == path:
                    return release, sae_id
    return None


class Release(NamedTuple):
    """A release in sae-lens's list: its repository, the loader of its files, and id -> path."""

    repository: str
    loader: str
    paths: dict[str, str]


@cache
def _directory() -> dict[str, Release]:
    """sae-lens's list. Read from the file itself: importing sae_lens takes ten seconds, too long for an error message."""
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None and spec.origin is not None
    with (Path(spec.origin).parent / "pretrained_saes.yaml").open() as file:
        listed = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        release: Release(
            facts["repo_id"],
            facts.get("conversion_func") or SAE_LENS,
            {str(sae["id"]): str(sae["path"]) for sae in facts["saes"]},
        )
        for release, facts in listed.items()
    }
