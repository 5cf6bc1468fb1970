"""The command demo: everything on one small study."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import console, emit, quiet_libraries, say, say_path, table, text
from saekit.cli.quality import print_quality
from saekit.cli.values import count
from saekit.terminal import clean, write_line

if TYPE_CHECKING:
    from saekit.demo import Demo
    from saekit.report import Section

_FOLDER = Path("saekit-demo")


@dataclass(frozen=True)
class SizeOptions:
    """How much to cache and to train."""

    tokens: options.TOKENS = 250_000
    train_tokens: Annotated[
        int, typer.Option("--train-tokens", help="Tokens to train on, including repeats.", parser=count(1), metavar="COUNT")
    ] = 1_500_000
    latents: Annotated[int, typer.Option("--latents", help="Features of the dictionary.", parser=count(1), metavar="COUNT")] = (
        1024
    )
    l0: options.L0 = 16
    seed: options.SEED = 0


def demo(
    folder: Annotated[Path | None, typer.Argument(hidden=True, metavar="")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the workspace.")] = _FOLDER,
    model: Annotated[str, typer.Option("--model", help="Hub name or local folder of a model, or lab: the built-in one.")] = "lab",
    data: Annotated[
        str | None, typer.Option("--data", help=f"{options.TEXTS} [default: lab, for the model lab]", show_default=False)
    ] = None,
    query: options.QUERIES = None,
    site: Annotated[
        str | None,
        typer.Option("--site", help="Site to read. [default: resid_post at two thirds of the depth]", show_default=False),
    ] = None,
    as_json: options.JSON = False,
    *,
    sizes: SizeOptions,
    load: options.LoadOptions,
) -> None:
    """Show everything on the built-in model, without a network: train a dictionary, search it, and steer by what was found.

    The demonstration ends with a page to look at, reports/demo.html in the folder. Run it again and it uses what is there.

    Example: `saekit demo --out my-demo`
    """
    quiet_libraries()
    from saekit import demo as show

    if folder is not None:
        write_line(f"warning: write `saekit demo --out {folder}`", stderr=True)
    found = show.run(
        folder or out, show.Subject(model, data, site, load.model_options()), query or (), sizes=show.Sizes(**asdict(sizes))
    )
    if as_json:
        emit(found.to_dict())
    else:
        _print_demo(found)


def _print_demo(found: Demo) -> None:
    from saekit.demo import next_steps

    print_quality(str(found.site), found.quality)
    say("")
    hits = [row for section in found.sections for row in _hits(section)]
    table(hits, title="found")
    steered = [row for section in found.sections for row in _steered(section)]
    if steered:
        table(steered, title="steered (texts and words that name the concept; perplexity: of the text alone, over natural text)")
        for section in found.sections:
            _print_texts(section)
    say((f"done in {found.seconds:.0f} s", "dim"))
    say_path("pictures: ", found.report)
    say(("next:", "dim"), *(f"\n  {line}" for line in next_steps(found.workspace, found.site, found.sections)))


def _hits(section: Section) -> list[dict[str, Any]]:
    return [
        {
            "concept": section.title,
            "feature": each.hit.feature,
            "label": each.hit.label,
            "of tokens": f"{each.hit.density:.2%}",
            "F1": "" if each.detected is None else f"{each.detected.f1:.3f}",
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
    return [
        {
            "concept": section.title,
            "arm": name,
            "feature": str(section.steered.record.feature) if name == "steered" else "",
            "strength": strength if name != "baseline" else "",
            "of texts": f"{arm.of_texts:.0%}",
            "of words": f"{arm.rate.value:.1%}",
            "of baseline": result.lift_text(arm) if name != "baseline" else "",
            "perplexity": f"{result.cost(arm):.2f}×",
        }
        for name, (result, arm, strength) in section.steered.arms().items()
    ]


def _print_texts(section: Section) -> None:
    """Print a continuation of the first prompt in each arm: the sample with the most mentions, with the mentions coloured."""
    from rich.text import Text

    if section.steered is None or section.mentions is None:
        return
    say((section.title, "bold"))
    for said in section.steered.verdicts():
        say(said)
    for name, (result, arm, _) in section.steered.arms().items():
        shown = Text(clean(result.sample(arm, 0, section.mentions).replace("\n", "↵")))
        for start, stop in section.mentions.spans(shown.plain):
            shown.stylize("bold green", start, stop)
        console().print(text((f"  {name:<9}", "dim"), (result.prompts[0], "dim")).append_text(shown))
    say("")
