"""Removing parts of a workspace that a person names. The caller sees first what would go, and how many bytes that frees."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit import files
from saekit.errors import ConfigError, SaekitError, WorkspaceError
from saekit.json_files import read_json
from saekit.names.address import Address
from saekit.names.dictionary import RESERVED
from saekit.names.site_map import SiteMap
from saekit.workspace import access, command_lines, inventory
from saekit.workspace.study import FILE

if TYPE_CHECKING:
    from saekit.workspace.folder import WorkspaceFolder

_NEEDED = (FILE, "checksums.txt", ".lock", ".lock-held")
_MANIFEST = "activations/manifest.json"
_DATABASE = "features.sqlite"
_AGAIN = {
    "temporary": "",
    "reports": "`saekit eval` and `saekit report` write reports again",
    "lenses": "`saekit lens --fit` fits lenses again",
}
"""How parts of a workspace are made again."""


@dataclass(frozen=True)
class Selection:
    """What a person names.

    Attributes:
        checkpoints: states from which unfinished training and indexing would go on.
        activations: the cached activations.
        names: dictionaries (`wide`, `resid_post.3@wide`, `resid_post.3`), and files or folders by their paths in the workspace.
    """

    checkpoints: bool = False
    activations: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removal:
    """One part that goes as a whole.

    Attributes:
        what: what it is.
        paths: its files and folders.
        bytes: what they occupy.
        again: how it can be made again, or that it cannot.
        dictionary: (site map, name) where it is a dictionary.
    """

    what: str
    paths: tuple[Path, ...]
    bytes: int
    again: str
    dictionary: tuple[str, str] | None = None

    def to_dict(self, root: Path) -> dict[str, Any]:
        """As JSON has it, with paths relative to the workspace."""
        paths = [path.relative_to(root).as_posix() for path in self.paths]
        return {"what": self.what, "paths": paths, "bytes": self.bytes, "again": self.again}


def planned(ws: WorkspaceFolder, selection: Selection) -> list[Removal]:
    """What would be removed. Nothing changes.

    Raises:
        ConfigError: nothing is selected, or a name means nothing, several things, or what the workspace cannot be without.
    """
    if not (selection.checkpoints or selection.activations or selection.names):
        raise ConfigError("Nothing is named to remove.", "Give --checkpoints, --activations or --name.")
    found = list(_checkpoints(ws)) if selection.checkpoints else []
    found += _activations(ws) if selection.activations else []
    found += [_named(ws, name) for name in dict.fromkeys(selection.names)]
    return [each for each in found if each.paths]


def remove(ws: WorkspaceFolder, removals: Sequence[Removal]) -> None:
    """Remove parts, each as a whole: a kill leaves a part there or gone, and a workspace that `verify` finds sound.

    The caller holds the workspace.

    Raises:
        Unwritable: a part cannot be removed.
    """
    for each in removals:
        for path in each.paths:
            access.check_link(ws.path, path)
        if each.dictionary is not None:
            _forget_features(ws, *each.dictionary)
        try:
            if each.paths[0].parent.name == "activations" and each.paths[0].suffix == ".h5":
                _empty_store(each.paths)
            else:
                files.remove(*each.paths)
        except OSError as error:
            raise files.unwritable(each.paths[0], error) from error


def _checkpoints(ws: WorkspaceFolder) -> Iterator[Removal]:
    for folder in sorted((ws.path / "sae").glob("**/checkpoints")):
        steps = tuple(sorted(path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink()))
        if steps:
            what = f"checkpoints of {folder.parent.relative_to(ws.path).as_posix()}{_at(steps[-1])}"
            yield Removal(what, steps, _bytes(steps), "training starts from the beginning")
    for state in sorted(ws.path.glob(f"{_DATABASE}.*.state.npz")):
        yield Removal(
            f"state of unfinished indexing, {state.name}", (state,), _bytes([state]), "indexing starts from the beginning"
        )


def _at(step: Path) -> str:
    try:
        return f", at {int(read_json(step / 'state.json', finite=False)['tokens']):,} tokens"
    except (SaekitError, KeyError, TypeError, ValueError):
        return ""


def _activations(ws: WorkspaceFolder) -> list[Removal]:
    folder = ws.path / "activations"
    shards = tuple(sorted(path for path in folder.glob("shard-*.h5") if not path.is_symlink()))
    sources = [ws.study.model, *ws.study.sources]
    paths = [Path(source) for source in sources if Path(source).is_absolute()]
    missing = [path for path in paths if not (path.exists() or Path(str(path).rpartition(":")[0]).exists())]  # ":0.3": a weight
    again = f"`{command_lines.caching(ws.path, ws.study)}` makes them again"
    if missing:
        again = f"they cannot be made again: {missing[0]} is no longer there"
    return [Removal("cached activations", shards, _bytes(shards), again)]


def _empty_store(shards: Sequence[Path]) -> None:
    """Remove the shards of a store. Its manifest stays without them, since it pins the model and the data to their revisions."""
    from saekit.activations.store.manifest import FILE as MANIFEST
    from saekit.activations.store.manifest import Manifest

    folder = shards[0].parent
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        manifest.shards, manifest.complete = [], False
        manifest.save(folder)  # from here on, the shards are leftovers that the next caching removes
    for shard in shards:
        shard.unlink()
    files.sync(folder)


def _named(ws: WorkspaceFolder, name: str) -> Removal:
    """What a name means: a dictionary, or a path in the workspace."""
    known = sorted({*ws.dictionaries.all(), *ws.dictionaries.begun()})
    addresses = {_address(*each): each for each in known}
    folders = {ws.dictionaries.folder(*each).relative_to(ws.path).as_posix(): each for each in known}
    found = [each for each in known if each[1] and each[1] == name] or [
        each for each in (addresses.get(name), folders.get(name.rstrip("/"))) if each is not None
    ]
    if len(set(found)) > 1:
        raise ConfigError(
            f"Several dictionaries are called {name!r}.", f"Say which: {', '.join(_address(*each) for each in found)}."
        )
    path = ws.path / name
    if found and (not path.exists() or name.rstrip("/") in folders):
        return _dictionary(ws, *found[0])
    if found:
        raise ConfigError(f"{name!r} is a dictionary and a file.", f"Say which: {_address(*found[0])}, or ./{name}.")
    if not name or not (path.exists() or path.is_symlink()):
        near = difflib.get_close_matches(name, [*addresses, *(each[1] for each in known if each[1])], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Give the name of a dictionary, or a path in the workspace."
        raise ConfigError(f"{ws.shown} has no dictionary and no file {name!r}.", hint)
    return _path(ws, Path(os.path.normpath(path)))


def _address(place: str, name: str) -> str:
    return f"{place}@{name}" if name else place


def _dictionary(ws: WorkspaceFolder, place: str, name: str) -> Removal:
    """The files of a dictionary; other dictionaries in its folder stay."""
    folder = ws.dictionaries.folder(place, name)
    paths = sorted(path for path in folder.iterdir() if not path.is_dir() or path.is_symlink() or path.name in RESERVED)
    paths.sort(key=lambda path: path.name != "cfg.json")
    whole = len(paths) == len(list(folder.iterdir()))
    kept = (folder,) if whole else tuple(paths)
    recorded = (folder / "train.json").exists()
    again = "training makes it again" if recorded else "it was not trained here: keep its source"
    return Removal(f"dictionary {_address(place, name)}", kept, _bytes(paths), again, (place, name))


def _forget_features(ws: WorkspaceFolder, place: str, name: str) -> None:
    """Take the features of a dictionary out of the database; labels and lists by people stay there for its return.

    Features of a dictionary that has the same weights under another name stay. Databases of earlier versions do not say the name
    of a dictionary, so that its weights tell it.
    """
    from feature_db import FeatureDB

    if SiteMap.parse(place).crosses or not ws.database_path.exists():
        return
    removed = Address(SiteMap.parse(place), name)
    others = {_fingerprint(ws, *each) for each in ws.dictionaries.all() if each != (place, name)}
    own = {_fingerprint(ws, place, name)} - others - {None}
    with FeatureDB.open(ws.database_path) as database:
        for each in database.saes():
            if each.address == removed or each.fingerprint in own:
                database.forget(each)


def _fingerprint(ws: WorkspaceFolder, place: str, name: str) -> str | None:
    """The fingerprint of a dictionary; None for one that is unfinished or damaged."""
    from saekit.sae import SAE

    try:
        return SAE.load(ws.dictionaries.folder(place, name), device="cpu").fingerprint()
    except SaekitError:
        return None


def _path(ws: WorkspaceFolder, path: Path) -> Removal:
    """A file or folder that is named by its path."""
    if not path.is_relative_to(ws.path) or path == ws.path:
        raise ConfigError(f"{path} is not in the workspace {ws.shown}.", "Give a path relative to it.")
    name = path.relative_to(ws.path).as_posix()
    if name in _NEEDED or name in ("activations", _MANIFEST) or name.startswith("activations/shard-"):
        hint = (
            "`--activations` removes the cached activations."
            if name.startswith("activations")
            else f"Remove all of {ws.shown} instead."
        )
        raise ConfigError(f"{name} is needed: without it the rest cannot be used.", hint)
    if name in ("sae", "vectors") or (name.startswith("sae/") and path.is_dir() and _holds_dictionary(path)):
        raise ConfigError(f"{name} holds dictionaries or what they need.", "Name each dictionary: `saekit info` lists them.")
    if name == _DATABASE:
        beside = [path.with_name(f"{name}{suffix}") for suffix in (".sha256", "-wal", "-shm", "-journal")]
        paths = (path, *(each for each in beside if each.exists()))
        return Removal(name, paths, _bytes(paths), _of_people(path))
    part = inventory.part_of(path.relative_to(ws.path))
    return Removal(name, (path,), _bytes([path]), _AGAIN.get(part, "it cannot be made again"))


def _holds_dictionary(folder: Path) -> bool:
    return any(True for _ in folder.glob("**/cfg.json"))


def _of_people(path: Path) -> str:
    """What a database holds that cannot be made again."""
    from feature_db import FeatureDB

    again = f"`{command_lines.command('index', path.parent)}` makes it again"
    try:
        with FeatureDB.open(path) as database:
            labels, entries = database.by_people()
    except SaekitError:
        return f"{again}, except labels and lists by people"
    if not labels and not entries:
        return again
    return f"{again}, except {labels:,} labels and {entries:,} list entries by people, which cannot be made again"


def _bytes(paths: Sequence[Path]) -> int:
    """Bytes of files, and of all files in folders."""
    total = 0
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            total += sum(file.bytes for file in inventory.stored_files(path))
        else:
            total += path.lstat().st_size
    return total


def check_idle(ws: WorkspaceFolder) -> None:
    """Raise while a command writes to the workspace.

    Raises:
        WorkspaceError: it is; the message names the command.
    """
    from saekit.workspace import jobs

    job = jobs.current(ws.path)
    if job is not None and job.state != "stopped":
        hint = "Wait for it to end." if job.holder is None else f"Wait for it to end: it is {job.holder}."
        raise WorkspaceError(f"Another saekit command is writing to {ws.shown}.", hint)
