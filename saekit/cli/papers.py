"""The command papers: the survey's table of papers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, quiet_libraries, say, table
from saekit.cli.values import count
from saekit.errors import ConfigError


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


@dataclass(frozen=True)
class RunOptions:
    """Whether the triple of a paper is run."""

    run: Annotated[
        bool, typer.Option("--run", help="Locate and steer as the paper's triple says, on a task of the built-in model.")
    ] = False
    quick: Annotated[bool, typer.Option("--quick", help="Few examples and steps, to see whether a recipe runs.")] = False
    place: Annotated[
        str,
        typer.Option(
            "--workspace",
            help="With --run: a workspace of the built-in model with dictionaries, which triples of SAE features need.",
            metavar="WS",
        ),
    ] = "lab"


def papers(
    number: Annotated[
        int | None, typer.Argument(help="Number of a paper.", show_default=False, metavar="NUMBER", parser=count(1))
    ] = None,
    as_json: options.JSON = False,
    *,
    which: PaperOptions,
    how: RunOptions,
) -> None:
    """List the papers of the survey "Locate, Steer, and Improve" (arXiv 2601.14004, Table 2).

    Each paper is tagged with a triple: the object, the locating method and the steering method; "-" where it leaves one open.

    Example: `saekit papers --object neuron --steer targeted`

    Example: `saekit papers 2`

    Example: `saekit papers 2 --run`
    """
    quiet_libraries()
    from saekit.improve.papers import find_papers, paper_of

    if number is None:
        given = {"object": which.object_, "locate": which.locate, "steer": which.steer, "scenario": which.scenario}
        found = find_papers({name: part for name, part in given.items() if part}, which.search)
    else:
        found = [paper_of(number)]
    if how.run:
        if number is None:
            raise ConfigError("--run takes the number of one paper.", "`saekit papers --search WORDS` shows the numbers.")
        _run(found[0].triple, how, as_json)
        return
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


def _run(triple: tuple[str, str, str], how: RunOptions, as_json: bool) -> None:
    """Run a triple and show what it gave."""
    from saekit.cli.subject import LoadOptions, open_subject
    from saekit.improve.triple import run_triple

    found = run_triple(open_subject(how.place, LoadOptions()).lm, triple, quick=how.quick)
    if as_json:
        emit(found.to_dict())
        return
    say(" + ".join(triple))
    for text in found.left_open:
        say(f"left open: {text}")
    if found.objects:
        table([{"object": ref, "score": f"{score:.4g}"} for ref, score in found.objects])
    if found.after is not None:
        say(f"changed: {found.change}")
        say(f"{found.measure}: {found.before:.3f} to {found.after:.3f}; KL on neutral text {found.kl:.3f} nats a token")
    else:
        say(f"{found.measure}: {found.before:.3f}")
