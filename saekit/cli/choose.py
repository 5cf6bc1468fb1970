"""The command choose: the default dictionary of a site."""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say


def choose(
    workspace: options.WORKSPACE,
    name: Annotated[str, typer.Argument(help="Name of the dictionary, or its address: resid_post.3@NAME.", metavar="NAME")],
    site: options.SITE = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help="Keep the previous default dictionary of the site under this name.", show_default=False),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Make a trained dictionary the default of its site: the one that index, search and steer use without --name.

    Example: `saekit choose pythia arch=topk,l0=16`
    """
    quiet_libraries()
    from saekit.workspace import command_lines
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    with ws.writing():
        chosen = ws.dictionaries.choose(name, site, keep=keep)
    name = name.rpartition("@")[2]
    if as_json:
        emit({"site": chosen, "name": name, "folder": str(ws.dictionaries.folder(chosen))})
    else:
        say("the default dictionary of ", (chosen, "bold"), " is now ", (name, "bold"))
        say(("next:", "dim"))
        for own in ("", keep) if keep and keep in ws.dictionaries.names(chosen) else ("",):
            say("  " + command_lines.of_dictionary("index", ws.path, chosen, own))
