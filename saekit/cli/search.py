"""The command search: features by concept."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import console, emit, quiet_libraries, say, text


def search(
    workspace: options.WORKSPACE,
    query: Annotated[str, typer.Argument(help="A concept, in plain words.", metavar="QUERY")],
    k: options.TOP = 10,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Search the dictionaries of this site only, or one dictionary: resid_post.3@NAME. [default: all]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Search the dictionary of this name only.", show_default=False)] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by", help="Search by this signal only: promotes, fires_word, label, ... May be repeated.", show_default=False
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run the words through the model and the dictionary. This loads both.")
    ] = False,
    as_json: options.JSON = False,
    *,
    load: options.PlaceOptions,
) -> None:
    """Find features by concept: by their labels, the words they fire on, their examples, and the tokens they promote.

    All indexed dictionaries are searched. `--site` and `--name` restrict the search to dictionaries that read the site, or
    have the name.

    To steer towards a concept, look for features that promote its words: `--by promotes`.

    Example: `saekit search pythia "happy"`
    """
    from rich.padding import Padding

    from saekit.names.address import Address
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace, **load.changes())
    extra: dict[str, Any] = {"by": by} if by else {}
    wanted = None if site is None else Address.parse(site)
    if deep or name or (wanted is not None and (wanted.name or wanted.site_out)):  # one dictionary
        extra["dictionary"] = address = ws.dictionaries.address(site, name)
        if deep:
            quiet_libraries()
            extra |= {"lm": ws.lm, "sae": ws.sae(address)}
    elif wanted is not None:
        extra["site"] = wanted.site
    hits = ws.database().search(query, k=k, **extra)
    rows = [hit.to_dict() for hit in hits]
    if as_json:
        emit(rows)
        return
    if not rows:
        say(f"nothing found for {query!r}")
    for row in rows:
        feature = row["ref"].removeprefix("feature:")
        density = f"  {row['density']:.2%} of tokens"
        say((f"{row['score']:.2f}  ", "cyan"), (feature, "bold"), "  ", (row["label"], "green"), (density, "dim"))
        console().print(Padding(text((row["why"], "dim")), (0, 0, 0, 6)))
