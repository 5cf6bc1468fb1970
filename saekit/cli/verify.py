"""The command verify: is every file of a workspace whole?"""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, error_facts, quiet_libraries, say, table


def verify(
    workspace: options.WORKSPACE,
    record: Annotated[
        bool, typer.Option("--record", help="Add checksums of files that have none, such as those of an earlier version.")
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", help="A file that you changed or removed yourself. May be repeated.", show_default=False),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Check every file against its checksum. Say what is damaged and how to mend it.

    Example: `saekit verify pythia`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    if record or accept:
        ws.record_checksums(accept or ())
    found = ws.check()
    error = found.error()
    if as_json:
        damaged = [{"part": part.name, "found": part.found, "hint": part.error and part.error.hint} for part in found.damaged]
        emit({"ok": error is None, "checks": found.checks()} | ({**error_facts(error), "damaged": damaged} if error else {}))
    else:
        table([{"part": part.name, "state": part.state, "found": part.found} for part in found.parts])
        for hint in dict.fromkeys(part.error.hint for part in found.damaged if part.error and part.error.hint):
            say((hint, "yellow"))
    if error is not None:
        raise typer.Exit(2)
