"""Commands that show: demo, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.app import Command, app
from saekit.cli.output import console, emit, print_quality, quiet_libraries, say, table, text
from saekit.terminal import clean

if TYPE_CHECKING:
    from saekit.demo import Demo
    from saekit.report import Section
    from saekit.workspace.workspace import Workspace

_QUERY = Annotated[
    list[str] | None,
    typer.Option("--query", "-q", help="A concept to look for, in plain words; may be repeated.", show_default=False),
]


@app.command(cls=Command)
def demo(
    folder: Annotated[Path, typer.Argument(help="Workspace to make, or to go on with.")] = Path("saekit-demo"),
    model: Annotated[str, typer.Option("--model", help="Hub name or local folder of a model, or lab: the built-in one.")] = "lab",
    data: Annotated[
        str | None, typer.Option("--data", help=f"{options.TEXTS} [default: lab, for the model lab]", show_default=False)
    ] = None,
    query: _QUERY = None,
    site: Annotated[
        str | None,
        typer.Option("--site", help="Where to read. [default: resid_post at two thirds of the depth]", show_default=False),
    ] = None,
    tokens: options.TOKENS = 250_000,
    train_tokens: Annotated[int, typer.Option(help="Tokens to train on, counting repeats.", min=1)] = 1_500_000,
    latents: Annotated[int, typer.Option("--latents", help="Features.", min=1)] = 1024,
    l0: options.L0 = 16,
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Show everything on the built-in model, without a network: train a dictionary, search it, steer by what was found.

    Ends with reports/demo.html in the folder, a page to look at. Run it again and it uses what is there.

    Example: `saekit demo`
    """
    quiet_libraries()
    from saekit import demo as show

    found = show.run(
        folder,
        model,
        data,
        query or (),
        site=site,
        tokens=tokens,
        train_tokens=train_tokens,
        latents=latents,
        l0=l0,
        seed=seed,
    )
    if as_json:
        emit(found.to_dict())
    else:
        _print_demo(found)


@app.command(cls=Command)
def report(
    workspace: options.WORKSPACE,
    site: options.SITE = None,
    query: _QUERY = None,
    top: Annotated[int, typer.Option("-n", "--top", help="Features a query.", min=1)] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. [default: reports/SITE.html in the workspace]", show_default=False)
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="How dictionaries were trained, or are being trained: of all, a page each.")
    ] = False,
    as_json: options.JSON = False,
) -> None:
    """Write a page on a dictionary: training curves, quality, density of its features, and what searches find.

    One HTML file that loads nothing from elsewhere.

    With `--training`, pages on the training of every dictionary (of a site, with `--site`), finished or not, as `saekit train`
    ends with: reports/train-SITE.html, or train-SITE-NAME.html.

    Example: `saekit report pythia --query "happy" --query "money"`

    Example: `saekit report pythia --training`
    """
    quiet_libraries()
    from saekit import report as pages
    from saekit.workspace.workspace import Workspace

    ws = Workspace.open(workspace)
    if training:
        _report_training(ws, site, as_json)
        return
    chosen = ws.dictionaries.site(site)
    sections = [pages.search(ws, chosen, text, k=top) for text in query or ()]
    path = pages.write(pages.gather(ws, chosen, sections), out or ws.path / "reports" / f"{chosen}.html")
    if as_json:
        emit({"report": str(path), "site": str(chosen), "found": {each.query: len(each.found) for each in sections}})
    else:
        say((str(path), "bold"))


def _report_training(ws: Workspace, site: str | None, as_json: bool) -> None:
    from saekit.report.training import write_training

    runs = ws.dictionaries.begun()
    found = [run for run in runs if site in (None, run[0], run[0].partition("->")[0])] or [(site or "", "")]  # which raises
    rows = [{"site": site, "name": name, "report": str(write_training(ws, site, name))} for site, name in found]
    emit(rows) if as_json else table(rows)


def _print_demo(found: Demo) -> None:
    from saekit.demo import next_steps

    print_quality(str(found.site), found.quality)
    say("")
    hits = [row for section in found.sections for row in _hits(section)]
    table(hits, title="found")
    steered = [row for section in found.sections for row in _steered(section)]
    if steered:
        table(steered, title="steered (rate: mentions of the concept a word; perplexity: under the unsteered model)")
        for section in found.sections:
            _print_texts(section)
    say((f"done in {found.seconds:.0f} s; ", "dim"), "look at ", (str(found.report), "bold"))
    say(("next:", "dim"), *(f"\n  {line}" for line in next_steps(found.workspace, found.site, found.sections)))


def _hits(section: Section) -> list[dict[str, Any]]:
    return [
        {
            "concept": section.title,
            "feature": each.hit.feature,
            "label": each.hit.label,
            "of tokens": f"{each.hit.density:.2%}",
            "AUC": "" if each.detected is None else f"{each.detected.auc:.3f}",
            "average precision": ""
            if each.detected is None
            else f"{each.detected.average_precision:.3f} (base rate {each.detected.base_rate:.3f})",
        }
        for each in section.found
    ]


def _steered(section: Section) -> list[dict[str, Any]]:
    if section.steered is None:
        return []
    result = section.steered.result
    (point,) = result.points
    return [
        {
            "concept": section.title,
            "arm": name,
            "feature": str(section.steered.record.feature) if name == "steered" else "",
            "strength": str(point.strength) if name != "baseline" else "",
            "rate": f"{arm.rate.value:.2%}",
            "of baseline": result.lift_text(arm) if name != "baseline" else "",
            "perplexity": f"{result.cost(arm):.2f}×" if name != "baseline" else "",
        }
        for name, arm in result.arms(point).items()
    ]


def _print_texts(section: Section) -> None:
    """How the first prompt goes on in each arm: the sample with most mentions, these in colour."""
    from rich.text import Text

    if section.steered is None or section.mentions is None:
        return
    result = section.steered.result
    (point,) = result.points
    say((section.title, "bold"))
    for name, arm in result.arms(point).items():
        shown = Text(clean(result.sample(arm, 0, section.mentions).replace("\n", "↵")))
        for start, stop in section.mentions.spans(shown.plain):
            shown.stylize("bold green", start, stop)
        console().print(text((f"  {name:<9}", "dim"), (result.prompts[0], "dim")).append_text(shown))
    say("")
