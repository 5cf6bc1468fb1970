"""Models whose own code the user has allowed to run on this machine.

A workspace records that its model needs code of its own. A workspace may come from somebody else, so that this record alone must
not run code: the user's own list decides. An entry of the list names a commit on the hub, or a folder and a hash of its code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

_FILE = "models-that-may-run-code.txt"
_HASH = " sha256:"


def allow(model: str, revision: str = "") -> None:
    """Remember that a model may run its code. Nothing is remembered where the list cannot be written or the code cannot be read.

    Args:
        model: hub name or folder. Of a folder, the code that it holds now is allowed.
        revision: commit on the hub.
    """
    with contextlib.suppress(OSError):
        if (entry := _entry(model, revision)) is None or entry in _entries():
            return
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a", encoding="utf-8") as file:
            file.write(f"{entry}\n")


def allowed(model: str, revision: str = "") -> bool:
    """Whether a model of this name and commit, or the code that a folder holds now, may run."""
    try:
        return _entry(model, revision) in _entries()
    except OSError:
        return False


def changed(model: str, revision: str = "") -> bool:
    """Whether code of a folder was allowed, but not the code that the folder holds now."""
    start = f"{_path(model)}{_HASH}"
    return not revision and not allowed(model) and any(entry.startswith(start) for entry in _entries())


def _entry(model: str, revision: str) -> str | None:
    """The line of the list; None where there is no such folder, or where its name does not fit on a line."""
    if revision:
        return f"{model}@{revision}"
    folder = _path(model)
    return f"{folder}{_HASH}{_code_hash(folder)}" if folder.is_dir() and len(str(folder).splitlines()) == 1 else None


def _path(model: str) -> Path:
    return Path(model).expanduser().absolute()


def _code_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the Python files of a folder, and over what its configurations load from them.

    The code of an adapter is that of its folder and that of its base model.
    """
    digest = hashlib.sha256()
    for place in (folder, *_bases(folder)):
        for name, content in _code(place):
            for part in (os.fsencode(name), content):
                digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _bases(folder: Path) -> list[Path]:
    """The folders that the base model of an adapter may be in: beside the adapter, or where its path says."""
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        return [place for place in (folder / base, Path(base)) if place.is_dir()]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _code(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the Python files below a folder, then (name, `auto_map`) of its JSON files, which names code to load.

    Links to files and folders are followed. A folder is visited once, and never one that holds `folder` itself, so that a link
    upwards ends.
    """
    root = folder.resolve()
    visited = {root, *root.parents}
    for place, folders, files in os.walk(root, followlinks=True):
        real = {name: Path(place, name).resolve() for name in sorted(folders)}
        folders[:] = [name for name, target in real.items() if target not in visited]
        visited.update(real.values())
        for path in sorted(Path(place, name) for name in files if name.endswith(".py")):
            yield str(path.relative_to(root)), path.read_bytes() if path.is_file() else b""
    for path in sorted(root.glob("*.json")):
        if path.is_file() and b"auto_map" in (content := path.read_bytes()):
            yield path.name, _auto_map(content)


def _auto_map(content: bytes) -> bytes:
    try:
        return json.dumps(json.loads(content)["auto_map"], sort_keys=True).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return content


def _entries() -> list[str]:
    try:
        return _list().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _list() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "saekit" / _FILE
