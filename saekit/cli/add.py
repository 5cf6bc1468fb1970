"""The command add: a dictionary that was made elsewhere."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, say_path, warn


def add(
    workspace: options.WORKSPACE,
    source: Annotated[
        str, typer.Argument(help=f"{options.SOURCE} With --id, the release or repository alone.", metavar="SOURCE")
    ],
    sae_id: Annotated[
        str, typer.Option("--id", help="ID of the SAE in the release, as sae-lens lists it.", show_default=False)
    ] = "",
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Site that it reads, or mlp_in.3->mlp_out.3 for a transcoder. [default: what its configuration says]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Name of the dictionary among those of its site. [default: it becomes the default one]",
            show_default=False,
        ),
    ] = "",
    as_json: options.JSON = False,
    *,
    load: options.PlaceOptions,
) -> None:
    """Add a dictionary that was trained elsewhere to a workspace: a published one, or a folder.

    The dictionary is copied into the workspace, in the layout of sae-lens, with a record of where it is from. A dictionary of
    another width, or of a site that the workspace has not cached, is refused. Another model of equal width, another length of
    contexts and another use of BOS are warned about.

    Example: `saekit add gpt2 gpt2-small-res-jb/blocks.8.hook_resid_pre --name joseph`

    Example: `saekit add pythia ~/saes/my-sae --site resid_post.3 --name mine`
    """
    quiet_libraries()
    from saekit.sae import load_from
    from saekit.workspace import imports
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace, **load.changes())
    source = f"{source.rstrip('/')}/{sae_id}" if sae_id else source
    found = imports.check(ws, source, load_from(source), site=site, name=name)
    for sentence in found.warnings:
        warn(sentence)
    with ws.writing():
        added = imports.add(ws, found)
    address = added.address
    facts = {"site": str(address.place), "name": address.name, "dictionary": str(address), "folder": str(added.folder)}
    if as_json:
        emit(facts | {"new": added.new, "features": found.loaded.sae.cfg.n_latents, "warnings": list(added.warnings)})
        return
    say_path(f"{found.loaded.sae.name} is {'' if added.new else 'already '}in ", added.folder)
    if not address.place.crosses:
        option = f"--site {quote(str(address.place))}" + (f" --name {quote(name)}" if name else "")
        say(("next:", "dim"), f"\n  saekit index {quote(ws.shown)} {option}\n  saekit eval {quote(ws.shown)} {option}")
