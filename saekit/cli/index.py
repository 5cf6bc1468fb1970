"""The command index: the features of a dictionary in the database."""

from __future__ import annotations

from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, table


def index(
    workspace: options.WORKSPACE,
    site: options.TRAINED_SITES = None,
    name: options.NAME = "",
    every: Annotated[bool, typer.Option("--all", help="Index every dictionary of the workspace, those with names too.")] = False,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", help="Make labels by this method only: words, pieces, promotes, ... May be repeated.", show_default=False
        ),
    ] = None,
    as_json: options.JSON = False,
    *,
    load: options.PlaceOptions,
) -> None:
    """Put the features of each site's default dictionary, or of those called NAME, into the searchable database.

    The features get labels made by rules. The database holds any number of dictionaries, also several of one site.

    Example: `saekit index pythia`

    Example: `saekit index pythia --site resid_post.3 --name wide`

    Example: `saekit index pythia --all`
    """
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.workspace.workspace import Workspace

    if every and (site or name):
        raise ConfigError("--all is given together with --site or --name.", "Give one of them.")
    ws = Workspace.open(workspace, **load.changes())
    chosen = ws.dictionaries.searchable() if every else ws.dictionaries.chosen(site, name)
    with ws.writing():
        for place, own in chosen:
            ws.index(place, own, labels=labels).close()
    rows = [{"site": place, "name": own, "features": ws.sae(place, own).cfg.n_latents} for place, own in chosen]
    if as_json:
        emit(rows)
        return
    table(rows)
    with ws.database() as database:
        waiting = sum(database.set_aside().values())
    if waiting:
        say((f"{waiting} labels and list entries by people belong to dictionaries that are not indexed now.", "dim"))
        say(("They are kept in features.sqlite and return when their dictionary is indexed again.", "dim"))
