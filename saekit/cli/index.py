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

    The features get labels made by rules. The database holds one dictionary of a site at a time.

    Example: `saekit index pythia`

    Example: `saekit index pythia --site resid_post.3 --name wide`
    """
    quiet_libraries()
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace, **load.changes())
    chosen = ws.dictionaries.chosen(site, name)
    with ws.writing():
        for place, _ in chosen:
            ws.index(place, name, labels=labels).close()
    rows = [{"site": place, "features": ws.sae(place, name).cfg.n_latents} for place, _ in chosen]
    if as_json:
        emit(rows)
        return
    table(rows)
    with ws.database() as database:
        waiting = sum(database.set_aside().values())
    if waiting:
        say((f"{waiting} labels and list entries by people belong to dictionaries that are not indexed now.", "dim"))
        say(("They are kept in features.sqlite and return when their dictionary is indexed again.", "dim"))
