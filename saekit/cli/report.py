"""The command report: an HTML page about a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say_path

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace


def report(
    workspace: options.WORKSPACE,
    site: options.SITE = None,
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
    as_json: options.JSON = False,
) -> None:
    """Write a page about a dictionary: training curves, quality, density of its features, chosen features, and searches.

    The page is one HTML file that loads nothing from other places.

    With `--training`, write a page about the training of every dictionary, or of those at `--site`, as `saekit train` does at its
    end: reports/train-SITE.html, or train-SITE-NAME.html.

    Example: `saekit report pythia --query "happy" --query "money"`

    Example: `saekit report pythia --features @safety`

    Example: `saekit report pythia --training`
    """
    quiet_libraries()
    from saekit import report as pages
    from saekit.names.dictionary import stem
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    if training:
        _report_training(ws, site, name, as_json)
        return
    chosen = ws.dictionaries.address(site, name)
    sections = [pages.chosen(ws, text, name=chosen.name) for text in features or ()]
    sections += [pages.search(ws, chosen, text, k=top) for text in query or ()]
    content = pages.gather(ws, chosen, sections)
    path = pages.write(content, page or ws.reports / f"{stem(chosen.place, chosen.name)}.html")
    if as_json:
        found = {each.query: len(each.found) for each in sections}
        emit({"report": str(path), "site": str(chosen.site), "name": chosen.name, "dictionary": str(chosen), "found": found})
    else:
        say_path("pictures: ", path)


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
