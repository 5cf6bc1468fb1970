"""The command clean: remove parts of a workspace."""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, say, size, table


def clean(
    workspace: options.WORKSPACE,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove the states of unfinished training and indexing; the best SAE is kept.")
    ] = False,
    activations: Annotated[bool, typer.Option("--activations", help="Remove the cached activations.")] = False,
    name: options.REMOVED = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Go ahead without asking.")] = False,
    as_json: options.JSON = False,
) -> None:
    """Remove parts of a workspace that you name. Without `--yes`, only show what would be removed, and its size.

    `--name` takes a dictionary (`wide`, `resid_post.3@wide`, or `resid_post.3` for the default one), or the path of a file or
    folder in the workspace, such as reports/demo.html. Nothing else goes: labels, lists and reports stay.

    The command refuses to run while another one writes to the workspace. What it removes is gone as a whole or not at all, also
    when it is killed.

    Example: `saekit clean pythia --activations`

    Example: `saekit clean pythia --name wide --checkpoints --yes`
    """
    from saekit.errors import ConfigError
    from saekit.workspace import cleaning
    from saekit.workspace.folder import WorkspaceFolder

    if dry_run and yes:
        raise ConfigError("--dry-run and --yes exclude each other.", "Leave out one of them.")
    ws = WorkspaceFolder.open(workspace)
    selection = cleaning.Selection(checkpoints, activations, tuple(name or ()))
    if yes:
        with ws.writing():
            found = cleaning.planned(ws, selection)
            cleaning.remove(ws, found)
    else:
        cleaning.check_idle(ws)
        found = cleaning.planned(ws, selection)
    total = sum(each.bytes for each in found)
    if as_json:
        parts = [each.to_dict(ws.path) for each in found]
        emit({"workspace": str(ws.path), "removed": yes, "bytes": total, "parts": parts})
        return
    if not found:
        say("there is nothing to remove")
        return
    table([{"part": each.what, "size": size(each.bytes), "to make it again": each.again} for each in found])
    say(f"{size(total)} removed" if yes else f"{size(total)} would be removed; `--yes` removes it")
