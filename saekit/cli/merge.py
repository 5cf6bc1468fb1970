"""The command merge: the features of two workspaces in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, say, say_path


def merge(
    first: Annotated[Path, typer.Argument(help="Workspace, or database file.", metavar="FIRST", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="SECOND", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist.", show_default=False)],
    as_json: options.JSON = False,
) -> None:
    """Merge two feature databases into a new workspace: dictionaries, labels, lists and notes of both. Neither is changed.

    A dictionary that both have keeps the rows of FIRST and gets the labels by people and models of both.

    Example: `saekit merge mine colleagues --out ours`
    """
    from saekit.workspace.databases import merge as merge_databases

    merged = merge_databases(first, second, out)
    if as_json:
        emit({"folder": str(out.absolute()), **merged.to_dict()})
        return
    for what, found in (("kept", merged.kept), ("added", merged.added), ("in both", merged.same)):
        if found:
            say((f"{what:<9}", "bold"), ", ".join(found))
    say(f"{merged.labels} labels and notes and {merged.entries} list entries came from {second}.")
    for sentence in merged.conflicts:
        say((sentence, "yellow"))
    say_path("Written to ", out)
