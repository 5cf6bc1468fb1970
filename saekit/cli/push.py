"""The command push: a dictionary on the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, quiet_libraries, say, say_path


def push(
    workspace: options.WORKSPACE,
    repository: Annotated[
        str, typer.Argument(help="Repository on the hub, as OWNER/NAME. It is made if it does not exist.", metavar="REPO")
    ],
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Site of the dictionary, or its address: resid_post.3@NAME. Needed if several sites have one.",
            show_default=False,
            autocompletion=completion.sites,
        ),
    ] = None,
    name: options.NAME = "",
    path: Annotated[
        str | None,
        typer.Option("--path", help="Folder in the repository: sae-lens's id. [default: SITE or SITE/NAME]", show_default=False),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, as the hub calls it: apache-2.0, mit, ...", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--branch", help="Branch, which is made if it does not exist. [default: main]", show_default=False),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--folder", help="Write what would be uploaded into this new folder, and upload nothing.", show_default=False
        ),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Put a dictionary on the Hugging Face hub, in the layout of sae-lens, with a model card.

    The card (README.md) has the metrics of `saekit eval`, the model, the data, the site, the commands that make the same
    dictionary, and how to load it. A card that the repository has already at its root stays as it is. Names of local paths are
    left out. Log in first with `hf auth login`.

    Example: `saekit push pythia someone/pythia-saes --site resid_post.3 --license apache-2.0`

    Example: `saekit push pythia someone/pythia-saes --folder look`
    """
    quiet_libraries()
    from saekit.names.address import Address
    from saekit.names.site_map import SiteMap
    from saekit.sae.upload import Target, upload
    from saekit.workspace import publishing
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    place, name = ws.dictionaries.find(site, name)
    target = Target(repository, path or publishing.default_path(place, name), revision, private)
    facts: dict[str, Any] = {"repository": repository, "path": target.path, "site": place, "name": name}
    if dry_run is not None:
        measured = publishing.write_folder(ws, place, name, target, dry_run, license)
        facts |= {"folder": str(dry_run), "measured": measured}
    else:
        with tempfile.TemporaryDirectory() as folder:
            measured = publishing.write_folder(ws, place, name, target, Path(folder) / "repository", license)
            pushed = upload(Path(folder) / "repository", target, f"Add {place}" + (f" {name}" if name else ""))
        target = pushed.target
        facts |= {"repository": target.repository, "address": pushed.address, "commit": pushed.commit, "measured": measured}
        facts |= {"card_kept": pushed.kept_card}
    missing = None
    if not measured:
        evaluating = f"saekit eval {quote(ws.shown)} --site {quote(str(Address(SiteMap.parse(place), name)))}"
        missing = f"The card has no metrics: run `{evaluating}` first."
        facts["hint"] = missing
    if as_json:
        emit(facts)
        return
    if dry_run is not None:
        say_path("written to ", dry_run)
    else:
        say((place, "bold"), " is at ", (pushed.address, "bold"))
        if pushed.kept_card:
            say((f"The repository keeps its README.md; the card of this dictionary is {target.path}/README.md.", "dim"))
    if missing is not None:
        say((missing, "yellow"))
    say(("next:", "dim"), f'\n  saekit.sae.SAE.load("{target.source}")')
