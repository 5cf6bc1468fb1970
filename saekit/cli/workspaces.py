"""The command list: the workspaces below a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, say, size, table
from saekit.cli.values import count


def workspaces(
    folder: Annotated[Path, typer.Argument(help="Folder to look in. [default: the current one]", metavar="FOLDER")] = Path(),
    depth: Annotated[
        int, typer.Option("--depth", help="Folders below it to look in, at most.", parser=count(0), metavar="COUNT")
    ] = 4,
    as_json: options.JSON = False,
) -> None:
    """List the workspaces below a folder, one line each. Symbolic links and hidden folders are not followed.

    Example: `saekit list`

    Example: `saekit list /data/studies --depth 2`
    """
    from saekit.views.workspaces import workspaces_view

    facts = workspaces_view(folder, depth)
    if as_json:
        emit(facts)
        return
    rows = [
        {
            "workspace": each["workspace"],
            "model": each["model"] or "",
            "tokens": f"{each['tokens']:,}",
            "dictionaries": ", ".join(each["dictionaries"][:4]) + (", ..." if len(each["dictionaries"]) > 4 else ""),
            "size": size(each["bytes"]),
            "state": each["state"],
            "changed": (each["changed"] or "").replace("T", " ")[:16],
        }
        for each in facts["workspaces"]
    ]
    table(rows)
    for each in facts["workspaces"]:
        if each["problem"]:
            say(("problem: ", "bold red"), f"{each['workspace']}: {each['problem']}")
    if facts["unread"]:
        say((f"{facts['unread']:,} folders could not be read or were too many to look in", "dim"))
