"""Whether the database describes the dictionary that a workspace has now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from feature_db.records import IndexedSAE, StoredFile
from feature_db.store.checksums import file_sha256
from saekit.errors import WorkspaceError, shown_path
from saekit.ledger import Ledger
from saekit.names.address import Address

FILES = ("cfg.json", "sae_weights.safetensors")
"""What a dictionary's folder holds that its features follow from."""
_SMALL = 1 << 25  # bytes of a file that is hashed for a quick answer
Signature = tuple[tuple[int, int], ...]


def signature(folder: Path) -> Signature | None:
    """Size and time of change of each of a dictionary's files; None where the folder holds no dictionary."""
    try:
        return tuple((facts.st_size, facts.st_mtime_ns) for facts in ((folder / name).stat() for name in FILES))
    except OSError:
        return None


def recorded(folder: Path) -> dict[str, StoredFile]:
    """A dictionary's files by name, to be stored with its features.

    Raises:
        OSError: one cannot be read.
    """
    found = {}
    for name in FILES:
        facts = (folder / name).stat()
        found[name] = StoredFile(file_sha256(folder / name), facts.st_size, facts.st_mtime_ns)
    return found


def index_again(workspace: Path, address: Address) -> str:
    """The hint to index a dictionary again."""
    name = f" --name {quote(address.name)}" if address.name else ""
    return (
        f"Run `saekit index {quote(shown_path(workspace))} --site {quote(str(address.place))}{name}`; labels by people are kept."
    )


def check(indexed: IndexedSAE, stored: Mapping[str, StoredFile], folders: Sequence[Path], workspace: Path) -> None:
    """Check that a dictionary whose features are indexed is in one of `folders`. Passes where none of them holds a dictionary.

    Equal sizes and times of change settle it; else checksums of the files do; else the dictionary is loaded, to compare
    fingerprints.

    Raises:
        WorkspaceError: the folders hold other dictionaries.
        SAEFormatError: files of a folder hold no dictionary.
    """
    found = [folder for folder in folders if signature(folder) is not None]
    if found and not any(_is(indexed, stored, folder) for folder in found):
        raise WorkspaceError(
            f"The indexed features of {indexed.dictionary} are of another dictionary than the one in {shown_path(found[0])}.",
            index_again(workspace, indexed.address),
        )


def fresh(stored: Mapping[str, StoredFile], folders: Sequence[Path]) -> bool | None:
    """Whether one of `folders` holds the dictionary that was indexed, as far as this shows without loading weights.

    Equal sizes and times of change settle it; else the checksums that the workspace keeps do, or those of small files.

    Returns:
        False where the folders hold no dictionary or other weights. None where only :func:`check` can tell: nothing was recorded
        of the files, the configuration alone has changed, or the files are large and without a checksum.
    """
    found = [_looks_same(stored, folder) for folder in folders if signature(folder) is not None]
    return True if True in found else None if None in found else False


def _looks_same(stored: Mapping[str, StoredFile], folder: Path) -> bool | None:
    then = [stored[name] for name in FILES if name in stored]
    if len(then) < len(FILES):
        return None
    if signature(folder) == _signature(then):
        return True
    ledger = Ledger.of(folder / FILES[0])
    kept = {} if ledger is None else ledger.hashes()
    config, weights = (_equals(file, folder / name, ledger, kept) for name, file in zip(FILES, then))
    return config or None if weights else weights


def _equals(file: StoredFile, path: Path, ledger: Ledger | None, kept: Mapping[str, set[str]]) -> bool | None:
    if path.stat().st_size != file.size:
        return False
    known = kept.get(path.absolute().relative_to(ledger.root).as_posix(), set()) if ledger is not None else set()
    if len(known) == 1:
        return file.sha256 in known
    return file.sha256 == file_sha256(path) if file.size <= _SMALL else None


def _signature(files: Sequence[StoredFile]) -> tuple[tuple[int, int | None], ...]:
    return tuple((file.size, file.mtime_ns) for file in files)


def _is(indexed: IndexedSAE, stored: Mapping[str, StoredFile], folder: Path) -> bool:
    then = [stored.get(name) for name in FILES]
    if signature(folder) == _signature([file for file in then if file]):
        return True
    if all(file and file.sha256 == file_sha256(folder / name) for name, file in zip(FILES, then)):
        return True
    from saekit.sae import SAE

    return SAE.load(folder, device="cpu").fingerprint() == indexed.fingerprint
