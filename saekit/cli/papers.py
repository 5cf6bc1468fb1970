"""The command papers: the survey's table of papers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, table
from saekit.cli.values import count


@dataclass(frozen=True)
class PaperOptions:
    """Which papers are listed."""

    object_: Annotated[
        str | None, typer.Option("--object", help="Objects: neuron, MHA, residual, SAE, FFN, embedding.", show_default=False)
    ] = None
    locate: Annotated[
        str | None,
        typer.Option(
            "--locate", help="Locating method: magnitude, causal, gradient, probing, vocab, circuit.", show_default=False
        ),
    ] = None
    steer: Annotated[
        str | None, typer.Option("--steer", help="Steering method: amplitude, vector, targeted.", show_default=False)
    ] = None
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="Scenario: safety, fairness, persona, ...", show_default=False)
    ] = None
    search: Annotated[str, typer.Option("--search", help="Words of the title.")] = ""


def papers(
    number: Annotated[
        int | None, typer.Argument(help="Number of a paper.", show_default=False, metavar="NUMBER", parser=count(1))
    ] = None,
    as_json: options.JSON = False,
    *,
    which: PaperOptions,
) -> None:
    """List the papers of the survey "Locate, Steer, and Improve" (arXiv 2601.14004, Table 2).

    Each paper is tagged with a triple: the object, the locating method and the steering method; "-" where it leaves one open.

    Example: `saekit papers --object neuron --steer targeted`

    Example: `saekit papers 2`
    """
    quiet_libraries()
    from saekit.improve.papers import find_papers, paper_of

    if number is None:
        given = {"object": which.object_, "locate": which.locate, "steer": which.steer, "scenario": which.scenario}
        found = find_papers({name: part for name, part in given.items() if part}, which.search)
    else:
        found = [paper_of(number)]
    if as_json:
        emit([asdict(paper) for paper in found])
        return
    table(
        [
            {
                "": paper.number,
                "title": paper.title,
                "object": paper.object,
                "locate": paper.locate,
                "steer": paper.steer,
                "where": f"{paper.venue} {paper.year}",
            }
            for paper in found
        ]
    )
    say((f"{len(found)} papers", "dim"))
