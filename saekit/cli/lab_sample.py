"""The command lab sample: documents of the built-in corpus."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import options
from saekit.cli.output import console, emit, say
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.lab import Document

_COLOURS = ("yellow", "cyan", "green", "magenta", "red", "blue", "bright_yellow", "bright_cyan", "bright_green", "bright_magenta")


def sample(
    genre: Annotated[
        str | None, typer.Option(help="Genre of the documents. [default: all, as in training]", show_default=False)
    ] = None,
    split: options.SPLIT = "train",
    n: Annotated[int, typer.Option("-n", help="Documents to show.", parser=count(1), metavar="COUNT")] = 3,
    seed: options.SEED = 0,
    as_json: options.JSON = False,
) -> None:
    """Print documents of the corpus with the concepts of their words.

    Example: `saekit lab sample --genre facts --split heldout`
    """
    from saekit import lab

    found = list(lab.documents(genre=genre, split=split, seed=seed, n=n))  # type: ignore[arg-type]
    if as_json:
        emit([{**asdict(each), "spans": [span._asdict() for span in each.spans]} for each in found])
        return
    for each in found:
        _print_document(each)


def _print_document(document: Document) -> None:
    from rich.text import Text

    from saekit import lab

    out = console()
    text = Text(document.text)
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for start, end, concept in document.spans:
        texts[concept][document.text[start:end]] = None
    styles: dict[str, str] = {}
    for concept in texts:
        colour = _COLOURS[len(styles) % len(_COLOURS)]
        styles[concept] = f"italic {colour}" if lab.CONCEPTS[concept].kind == "region" else f"black on {colour}"
    # Long stretches first, so that the words in them keep their own colours.
    for start, end, concept in sorted(document.spans, key=lambda span: span.start - span.end):
        text.stylize(styles[concept], start, end)
    out.rule(Text(f"{document.genre}, {document.split}", style="dim"), align="left")
    out.print(text)
    for concept, spans in texts.items():
        whole = lab.CONCEPTS[concept].kind == "region"
        shown = f"{len(spans)} stretches" if whole and len(spans) > 1 else "a stretch" if whole else ", ".join(spans)
        say("  ", (f" {concept} ", styles[concept]), "  ", (shown, "dim"))
