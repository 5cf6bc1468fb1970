"""What a shell offers when Tab is pressed: commands, options, workspaces, and what is in the workspace that was typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.errors import SaekitError

if TYPE_CHECKING:
    from saekit.workspace.folder import WorkspaceFolder

VARIABLE = "_SAEKIT_COMPLETE"
"""The scripts of `saekit --show-completion` set it to what they ask for, such as complete_bash."""
_MOST = 200


def complete(root: Any, asked: str) -> int:
    """Print what `asked` asks for; returns the exit status. Nothing is offered for a command line with a mistake.

    Args:
        root: the command `saekit`.
    """
    from typer.completion import shell_complete

    with suppress(SaekitError):
        return shell_complete(root, {}, "saekit", VARIABLE, asked)
    return 0


def workspaces(incomplete: str) -> list[str]:
    """Workspaces whose path begins with what was typed, and folders that may hold some, with a slash at the end."""
    from saekit.workspace.study import FILE

    parent, slash, begun = ("", "", incomplete) if "/" not in incomplete else incomplete.rpartition("/")
    found = []
    with suppress(OSError, RuntimeError):
        for item in sorted(os.scandir(Path(parent + slash).expanduser()), key=lambda item: item.name):
            hidden = item.name.startswith(".") and not begun.startswith(".")
            if item.name.startswith(begun) and not hidden and item.is_dir():
                path = f"{parent}{slash}{item.name}"
                found.append(path if (Path(item.path) / FILE).is_file() else f"{path}/")
    return found[:_MOST]


def sites(incomplete: str) -> list[str]:
    """Sites of the dictionaries in the workspace, and its cached sites."""
    return _begun(_of_workspace(lambda ws: [*(place for place, _ in ws.dictionaries.all()), *ws.study.sites]), incomplete)


def names(incomplete: str) -> list[str]:
    """Names of the dictionaries in the workspace, or of those at the site that was typed before."""
    words = _typed()
    wanted = words[words.index("--site") + 1 :][:1] if "--site" in words else []

    def known(ws: WorkspaceFolder) -> list[str]:
        return [name for place, name in ws.dictionaries.all() if name and (not wanted or place == wanted[0])]

    return _begun(_of_workspace(known), incomplete)


def removable(incomplete: str) -> list[str]:
    """What `saekit clean --name` takes: dictionaries, and pages and evaluations."""

    def known(ws: WorkspaceFolder) -> list[str]:
        dictionaries = [f"{place}@{name}" if name else place for place, name in ws.dictionaries.all()]
        folders = (ws.path / "reports", ws.path / "rankings", ws.path / "lenses", ws.path / "steering")
        return [*dictionaries, *(str(path.relative_to(ws.path)) for folder in folders for path in sorted(folder.glob("*")))]

    return _begun(_of_workspace(known), incomplete)


def _of_workspace(known: Callable[[WorkspaceFolder], Iterable[str]]) -> list[str]:
    """What the first workspace on the command line has; nothing without a workspace, or if it is damaged."""
    from saekit.workspace.folder import WorkspaceFolder
    from saekit.workspace.study import FILE

    for word in _typed():
        with suppress(SaekitError, OSError, RuntimeError):
            path = Path(word).expanduser()
            if (path / FILE).is_file():
                return list(dict.fromkeys(known(WorkspaceFolder.open(path))))
    return []


def _typed() -> list[str]:
    """The words of the command line so far, as the script of the shell passes them on. An unfinished option hides the arguments
    from the parser."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    try:
        return shlex.split(line)
    except ValueError:  # an open quotation mark
        return line.split()


def _begun(found: Iterable[str], incomplete: str) -> list[str]:
    return [each for each in found if each.startswith(incomplete)][:_MOST]
