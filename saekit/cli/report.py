"""The command report: an HTML page about a dictionary, or all pages as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, quiet_libraries, say, say_path
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace


def report(
    workspace: options.WORKSPACE,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Site of the dictionary, or its address: resid_post.3@NAME. Or a folder, like public/: it gets all pages.",
            show_default=False,
            autocompletion=completion.sites,
        ),
    ] = None,
    name: options.NAME = "",
    query: options.QUERIES = None,
    features: options.FEATURES = None,
    top: options.TOP = 5,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            help="File to write. [default: reports/SITE.html or SITE-NAME.html in the workspace]",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Write a page about the training of every dictionary, finished or not.")
    ] = False,
    most: Annotated[
        int | None,
        typer.Option(
            "--most",
            help="Most pages of features of each dictionary, in a folder of pages; frequent ones first. [default: all]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None,
    as_json: options.JSON = False,
) -> None:
    """Write a page about a dictionary: training curves, quality, density of its features, chosen features, and searches.

    The page is one HTML file that loads nothing from other places.

    With `--training`, write a page about the training of every dictionary, or of those at `--site`, as `saekit train` does at its
    end: reports/train-SITE.html, or train-SITE-NAME.html.

    With `--site FOLDER`, write the pages of `saekit serve` that need no model as plain files, which open from a disk or any web
    host: the workspace, its dictionaries, tables, charts, features, rankings, and a search. `--features` and `--most` choose.

    Example: `saekit report pythia --query "happy" --query "money"`

    Example: `saekit report pythia --features @safety`

    Example: `saekit report pythia --training`

    Example: `saekit report pythia --site public/ --most 1000`
    """
    quiet_libraries()
    from saekit import report as pages
    from saekit.errors import ConfigError, SaekitError
    from saekit.names.dictionary import stem
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    if site is not None and _is_folder(site):
        _write_site(ws, Path(site), features, most, as_json)
        return
    if most is not None:
        raise ConfigError("--most is for a folder of pages.", "Give the folder, like --site public/.")
    if training:
        _report_training(ws, site, name, as_json)
        return
    try:
        chosen = ws.dictionaries.address(site, name)
    except SaekitError as error:
        if site is None:
            raise
        raise type(error)(
            error.what, f"{error.hint or ''} A folder for all pages is written with a slash: --site {site}/."
        ) from error
    sections = [pages.chosen(ws, text, name=chosen.name) for text in features or ()]
    sections += [pages.search(ws, chosen, text, k=top) for text in query or ()]
    content = pages.gather(ws, chosen, sections)
    path = pages.write(content, page or ws.reports / f"{stem(chosen.place, chosen.name)}.html")
    if as_json:
        found = {each.query: len(each.found) for each in sections}
        emit({"report": str(path), "site": str(chosen.site), "name": chosen.name, "dictionary": str(chosen), "found": found})
    else:
        say_path("pictures: ", path)


def _is_folder(site: str) -> bool:
    """Whether `--site` means a folder: it is written as a path."""
    import os

    return os.sep in site or site in (os.curdir, os.pardir)


def _write_site(ws: Workspace, out: Path, features: list[str] | None, most: int | None, as_json: bool) -> None:
    from saekit.serve.site.write import write_site

    refs = None
    if features:
        with ws.database() as database:
            found = [database.feature(ref) for text in features for ref in ws.refs(text)]
            refs = [(each.dictionary, each.feature) for each in found]
    facts = write_site(ws, out, refs=refs, most=most)
    if as_json:
        emit(facts)
        return
    each = f", {facts['bytes_per_feature'] / 1000:.0f} kB each" if facts["bytes_per_feature"] else ""
    say(f"{facts['features']:,} features{each}; {facts['files']:,} files, {facts['bytes'] / 1e6:.1f} MB in all")
    for name, reason in facts["left_out"].items():
        say((f"left out: {name}. {reason}", "dim"))
    say_path("pages: ", Path(facts["site"]))


def _report_training(ws: Workspace, site: str | None, name: str, as_json: bool) -> None:
    from saekit.report.training import write_training

    runs = [run for run in ws.dictionaries.begun() if name in ("", run[1])]
    found = [run for run in runs if site in (None, run[0], run[0].partition("->")[0])] or [
        (site or "", name)
    ]  # raises if there is no such run
    rows = [{"site": place, "name": own, "report": str(write_training(ws, place, own))} for place, own in found]
    if as_json:
        emit(rows)
        return
    for row in rows:
        say_path(f"{' '.join(filter(None, (row['site'], row['name'])))}: ", Path(row["report"]))
