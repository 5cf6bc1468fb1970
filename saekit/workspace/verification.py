"""Checking every file of a workspace, and what was found."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from feature_db.store import current
from saekit import files, ledger
from saekit.errors import SaekitError, StoreMismatch, WorkspaceError
from saekit.ledger import Contents, Ledger, file_sha256

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace

State = Literal["sound", "damaged", "not covered", "unknown"]

_RESTORE = "Restore it from a copy."
_WITHOUT = "written before checksums, or by a command that was killed"
# Files that saekit writes and the ledger covers.
_OURS = re.compile(
    r"saekit\.toml|activations/manifest\.json|vectors/.+\.(npy|safetensors)|(reports|rankings|graphs|lenses|steering)/.+"
    r"|sae/.+/(cfg\.json|[a-z_]+\.safetensors|train\.json|source\.json|state\.json|metrics\.jsonl?|timing\.jsonl)"
)
# Files that have their checksum elsewhere, or hold nothing.
_ELSEWHERE = re.compile(
    r"\.lock(-held)?|checksums\.txt|activations/(shard-\d+\.h5|\.lock-held)"
    r"|features\.sqlite(-wal|-shm|-journal|-held|\.sha256|\..+\.state\.npz)?"
)
_OTHERS = re.compile(r"sae/.+/wandb/.+")


@dataclass(frozen=True)
class Part:
    """What was found of one part of a workspace.

    Attributes:
        name: its path in the workspace, or a word for several files.
        state: sound, damaged, not covered by a checksum, or unknown: not a file of saekit.
        found: what was found, as a sentence without its full stop.
        error: of a damaged part, as the step that reads it would raise it.
    """

    name: str
    state: State
    found: str
    error: SaekitError | None = None


@dataclass(frozen=True)
class Verification:
    """What was found of every part, in the order in which they were checked."""

    parts: list[Part] = field(default_factory=list)

    @property
    def damaged(self) -> list[Part]:
        """The parts that are damaged."""
        return [part for part in self.parts if part.state == "damaged"]

    def checks(self) -> dict[str, str]:
        """What was found, by part."""
        return {part.name: part.found if part.state == "sound" else f"{part.state}: {part.found}" for part in self.parts}

    def error(self) -> SaekitError | None:
        """One error that names all damage, of the type that the first damaged part raises; None where nothing is damaged."""
        errors = [part.error for part in self.damaged if part.error is not None]
        if not errors:
            return None
        hints = list(dict.fromkeys(error.hint for error in errors if error.hint))
        return type(errors[0])(" ".join(error.what for error in errors), " ".join(hints) or None)


def verify(ws: Workspace, *, progress: bool = True) -> Verification:
    """Check every file of a workspace; damage of one part does not keep others from being checked."""
    parts = list(_activations(ws, progress))
    saes, fingerprints = [], {}
    for place, name in ws.dictionaries.all():
        part, fingerprint = _dictionary(ws, place, name)
        saes.append(part)
        fingerprints[place, name] = fingerprint
    parts += saes
    if ws.database_path.exists():
        parts += _database(ws, fingerprints)
    parts += _files(ws.path)
    return Verification(parts)


def record(ws: Workspace, accept: Collection[str] = ()) -> list[str]:
    """Write checksums of files that have none into the ledger; returns their names. The caller holds the workspace.

    Args:
        ws: the workspace.
        accept: files, relative to it, whose present content (or absence) is right.

    Raises:
        WorkspaceError: `accept` names a file that the ledger does not cover.
        Unwritable, StorageFull: the ledger cannot be written.
    """
    root, own = ws.path, Ledger(ws.path)
    try:
        found = own.read()
        for name in accept:
            if name not in found.hashes and not _OURS.fullmatch(name):
                raise WorkspaceError(
                    f"No checksum is kept of {name!r}.", "Give its path in the workspace, as `saekit verify` does."
                )
        added = [path for path in _walk(root) if not path.is_symlink() and _wanted(_name(root, path), found, accept)]
        gone = [name for name in accept if not (root / name).exists()]
        files.write_whole(own.path, own.text_with(found, added, gone), checksum=False)
    except OSError as error:
        raise files.unwritable(own.path, error) from error
    return [_name(root, path) for path in added] + _record_database(ws.database_path)


def _record_database(path: Path) -> list[str]:
    """Write the checksum of a database that has none, if it is sound; returns its name then."""
    from feature_db import FeatureDB
    from feature_db.store import checksums

    if not path.exists() or checksums.checksum_path(path).exists():
        return []
    try:
        with FeatureDB.open(path) as database:
            database.verify()
    except SaekitError:
        return []  # `verify` says what is damaged
    return [path.name] if checksums.record(path) else []


def _wanted(name: str, found: Contents, accept: Collection[str]) -> bool:
    return name in accept or (name not in found.hashes and _OURS.fullmatch(name) is not None)


def _walk(root: Path) -> Iterator[Path]:
    """All files below `root`, in order; links are given and not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*names, *links]))


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _damage(name: str, what: str, hint: str = _RESTORE) -> Part:
    return Part(name, "damaged", what, WorkspaceError(f"{name}: {what}.", hint))


def _files(root: Path) -> Iterator[Part]:
    """Check all files that the ledger covers, and list the files that it does not cover."""
    from feature_db.search.arrays import SUFFIXES  # loads numpy

    own = Ledger(root)
    try:
        found = own.read()
    except OSError as error:
        found = Contents()
        if own.path.exists():
            yield _damage(ledger.FILE, f"it cannot be read ({error.strerror})")
    sound, without, unknown = 0, [], []
    for path in _walk(root):
        name = _name(root, path)
        if name in found.hashes:
            if problem := _problem(path, found.hashes[name]):
                yield _damage(name, problem)
            else:
                sound += 1
        elif _OURS.fullmatch(name):
            without.append(name)
        elif not (_ELSEWHERE.fullmatch(name) or _OTHERS.fullmatch(name)):
            unknown.append(name)
    missing = [name for name in found.hashes if not (root / name).exists()]
    for name in [name for name in missing if not name.endswith(SUFFIXES)]:  # the next search writes those again
        hint = f"{_RESTORE} If you removed it yourself: `saekit verify {root} --accept {name}`."
        yield _damage(name, "the file is missing", hint)
    for problem in found.problems:
        yield _damage(ledger.FILE, problem, f"`saekit verify {root} --record` writes it again.")
    if sound:
        yield Part("files", "sound", f"{sound} match their checksums")
    if without:
        yield Part(
            "files without checksums", "not covered", f"{_some(without)}: {_WITHOUT}; `saekit verify {root} --record` adds them"
        )
    if unknown:
        leftovers = " (temporary files are removed by the next command that writes)" * any(map(_is_temporary, unknown))
        yield Part("other files", "unknown", f"{_some(unknown)}{leftovers}")


def _is_temporary(name: str) -> bool:
    return any(map(files.is_leftover, name.split("/")))


def _some(names: Collection[str], shown: int = 5) -> str:
    listed = ", ".join(list(names)[:shown])
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more"


def _problem(path: Path, hashes: set[str]) -> str:
    if path.is_symlink():
        return "a symbolic link is in the place of the file"
    try:
        return "" if file_sha256(path) in hashes else "its content does not match its checksum"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _activations(ws: Workspace, progress: bool) -> Iterator[Part]:
    folder = ws.path / "activations"
    if not (folder / "manifest.json").exists():  # nothing is cached yet; the ledger knows of one that is missing
        return
    from saekit.activations import ActivationStore
    from saekit.activations.store.manifest import Manifest

    try:
        store = ActivationStore(folder, Manifest.load(folder))
    except SaekitError as error:
        yield Part("activations", "damaged", error.what, error)
        return
    damage = list(store.problems(progress))
    for file, problem in damage:
        yield Part(f"activations/{file}", "damaged", problem.what, problem)
    if not damage:
        state = "" if store.complete else "; the store is unfinished"
        yield Part("activations", "sound", f"{store.n_tokens:,} tokens, every checksum right{state}")


def _dictionary(ws: Workspace, place: str, name: str) -> tuple[Part, str | None]:
    """The part of a dictionary, and the fingerprint of its weights."""
    from saekit.sae import SAE, load_sparsity

    folder = ws.dictionaries.folder(place, name)
    label = "/".join(filter(None, ("sae", place, name)))
    try:
        sae = SAE.load(folder)
        load_sparsity(folder)
        ws.train_config(place, name)
        return Part(label, "sound", f"{sae.cfg.architecture}, {sae.cfg.n_latents:,} features"), sae.fingerprint()
    except SaekitError as error:
        return Part(label, "damaged", error.what, error), None
    except OSError as error:
        return _damage(label, f"it cannot be read ({error.strerror or error})", "Check its permissions and the disk."), None


def _database(ws: Workspace, fingerprints: dict[tuple[str, str], str | None]) -> Iterator[Part]:
    name = ws.database_path.name
    try:
        with ws.database() as database:
            unchecked = database.verify()
            indexed = database.saes()
    except SaekitError as error:
        yield Part(name, "damaged", error.what, error)
        return
    covered = [Path(file).name for file in Ledger(ws.path).hashes() if file.endswith(".npy")]
    unchecked = [remark for remark in unchecked if not any(file in remark for file in covered)]
    sizes = ", ".join(f"{each.n_features:,} features at {each.dictionary}" for each in indexed)
    yield Part(name, "not covered", " ".join([f"{sizes}.", *unchecked]).rstrip(".")) if unchecked else Part(name, "sound", sizes)
    for each in indexed:
        if each.fingerprint not in fingerprints.values() and None not in fingerprints.values():
            if not any(current.signature(folder) for folder in ws.dictionaries.folders(str(each.address))):
                what = "its dictionary is not in the workspace, as after an import, a merge or its removal"
                yield Part(f"features of {each.dictionary}", "not covered", what)
                continue
            name = f" --name {quote(each.name)}" if each.name else ""
            stale = StoreMismatch(
                f"The features of {each.dictionary} in {ws.database_path} are not those of any dictionary in the workspace.",
                f"Run `saekit index {quote(ws.shown)} --site {quote(str(each.address.place))}{name}`.",
            )
            yield Part(f"features of {each.dictionary}", "damaged", stale.what, stale)
