"""The command steer: generation with a feature turned on."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.output import console, emit, number, quiet_libraries, say, say_line, text
from saekit.cli.subject import WS_OR_MODEL, open_subject
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.workspace.workspace import Workspace

WEAK = 0.25
"""A feature with an output score below those of three quarters of its dictionary's features gets a warning."""


@dataclass(frozen=True)
class SteeringOptions:
    """What to do with the features, and where."""

    op: options.OPERATION = "clamp"
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--change",
            help="Any object, vector or kept intervention, and its strength: neuron:2/17:1max, head:3.5:0, french, or JSON with "
            "target, op, strength and positions. May be repeated.",
            metavar="OBJECT[:STRENGTH]",
            show_default=False,
        ),
    ] = None
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also steer in a random direction, with a change of the same norm.")
    ] = True
    positions: Annotated[
        str | None,
        typer.Option(
            help="Tokens to steer at: last+generated, generated, prompt, last, all, or places like 0,3,-1. "
            "[default: last+generated; all for ablate]",
            show_default=False,
        ),
    ] = None
    dola: Annotated[
        str | None,
        typer.Option(
            help="Decode by contrast with earlier layers (DoLa): low, high, or layers like 0,2,4.",
            metavar="low|high|LAYERS",
            show_default=False,
        ),
    ] = None

    def decoding(self) -> list[Any]:
        """The changes of logits."""
        from saekit.steer.decode import DoLa

        if self.dola is None:
            return []
        layers = self.dola.split(",")
        return [DoLa([int(each) for each in layers] if all(each.strip().isdecimal() for each in layers) else self.dola)]


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate."""

    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens to generate after each prompt.", parser=count(1), metavar="COUNT")
    ] = 48
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy decoding.")] = False
    n_samples: Annotated[
        int,
        typer.Option(
            "--samples", help="Continuations of each prompt. More than one implies --sample.", parser=count(1), metavar="COUNT"
        ),
    ] = 1
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits before sampling. Implies --sample.", show_default=False)
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample among the likeliest tokens whose probabilities add up to this.", show_default=False),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Sample among this many of the likeliest tokens; 0: among all.", show_default=False)
    ] = None
    seed: options.SEED = 0

    @property
    def sampling(self) -> dict[str, float]:
        """The settings of sampling that are given."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in given.items() if value is not None}


def steer(
    place: WS_OR_MODEL,
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.", metavar="PROMPT")],
    feature: options.STRENGTHS = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector",
            help="Steering vector to add, by name in the workspace or file, and strength: french:0.8norm. May be repeated.",
            metavar="NAME_OR_FILE[:STRENGTH]",
            show_default=False,
        ),
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    steering: SteeringOptions,
    generation: GenerationOptions,
    load: options.LoadOptions,
) -> None:
    """Generate with and without features or vectors turned on, side by side and from the same seed.

    1042 clamps the feature to half the typical norm of its site, 1042:0.8norm to 0.8 of that norm, 1042:2 to twice the feature's
    maximum activation, 1042:q.99 to the 0.99 quantile of its activations.

    --vector french:0.8norm adds a vector of `saekit vector fit`, made 0.8 times as long as the typical activation; french:2 adds
    twice the vector. It works with a model as well as with a workspace.

    `--op` chooses the operation on features. clamp sets the coefficient of the feature to the strength, add adds the strength to
    it, scale multiplies it by the strength (1042:2 doubles it), and ablate sets it to 0. ablate takes no strength.

    --change takes every kind of object: `--change neuron:2/17:1max`, `--change head:3.5:0` (a head's strength is a factor), the
    name of a vector or intervention that the workspace keeps, or JSON as the steering bench of `saekit serve` writes it.

    The random control shows whether the effect is specific to the feature: it changes the activations by the same norm in a
    random direction. `--no-control` leaves it out. `--samples 8` generates eight continuations of each prompt by sampling, which
    shows an effect more reliably than one greedy continuation.

    `--dola low` subtracts, at every token, what an early layer already predicts: alone, or with features and vectors.

    Steering works best with features that promote the words of a concept: `saekit search WORKSPACE CONCEPT --by says`. A feature
    that fires on a concept's tokens does not necessarily make the model produce them. The last lines say what `saekit index`
    measured of each feature: its output score (how likely a clamp makes the tokens that it promotes) and the tokens that gain.

    Example: `saekit steer pythia --feature 1042:0.5norm "Once upon a time"`

    Example: `saekit steer pythia --feature resid_post.3@gemma/1042:0.5norm "Once upon a time"`
    """
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.steer import combine, compare
    from saekit.workspace import interventions, vectors

    decoding = steering.decoding()
    if not feature and not vector and not steering.by and not decoding:
        raise ConfigError("There is nothing to steer with.", "Give --feature, --vector or --change.")
    subject = open_subject(place, load)
    ws, lm = subject.workspace, subject.lm
    if (feature or steering.by) and ws is None:
        needs = "--feature needs" if feature else "--change needs"
        raise ConfigError(f"{place} is a model, and {needs} a workspace.", "Name a workspace, or give --vector.")
    norms = None if ws is None else ws.median_norm
    changes = [vectors.push(ws, lm, each, norms) for each in vector or []]
    if ws is not None and feature:
        changes.append(ws.intervention(feature, op=steering.op, name=name))
    if ws is not None and steering.by:
        changes.append(interventions.described(ws, map(_description, steering.by)))
    result = compare(
        lm,
        prompts,
        combine(changes),
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.sample or None,
        n_samples=generation.n_samples,
        control=steering.control and bool(changes),
        decoding=decoding,
        positions=steering.positions,
        seed=generation.seed,
        **generation.sampling,
    )
    facts = {**result.to_dict(), "measured": ws.causal(feature, name=name) if ws is not None and feature else []}
    if as_json:
        emit(facts)
        return
    _print_steered(prompts, generation.n_samples, facts)
    for each in facts["measured"]:
        assert ws is not None, "measures come from a workspace"
        _print_measured(ws, each)


def _description(text: str) -> Any:
    """What `--change` was given: JSON, or a text."""
    from saekit.errors import ConfigError
    from saekit.json_files import parse_json

    return parse_json(text, where="--change", error=ConfigError) if text.lstrip().startswith("{") else text


def _print_measured(ws: Workspace, facts: dict[str, Any]) -> None:
    """What a clamp of the feature was measured to do, with a warning where it does little for the tokens that it promotes."""
    caused = ", ".join(map(repr, facts["tokens"]))
    said = f"output score {number(facts['output_score'])}, above {facts['above']:.0%} of its dictionary; a clamp raises {caused}"
    say(f"{facts['feature']}: {said}" if caused else f"{facts['feature']}: {said.partition(';')[0]}; a clamp raises nothing")
    if facts["above"] < WEAK:
        say(("A clamp of this feature hardly makes the tokens that it promotes. Others may steer better:", "yellow"))
        say_line("", (f'saekit search {quote(ws.shown)} CONCEPT --by says --sort "output_score desc"', "bold"))


def _print_steered(prompts: list[str], n_samples: int, facts: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    columns = [name for name in ("baseline", "steered", "random") if facts.get(name)]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in columns:
        grid.add_column(name, ratio=1)
    for i in range(len(prompts) * n_samples):
        prompt = prompts[i // n_samples]
        grid.add_row(*(text((prompt, "dim"), facts[name][i]) for name in columns))
    console().print(grid)
    perplexity = "  ".join(f"{name} {number(value)}" for name, value in facts["perplexity"].items())
    for each in facts["fired"]:
        fired = f"the feature fired on {each['fired']:,} of {each['steered']:,} steered positions without steering"
        say(f"{each['feature']}: {fired if each['steered'] else 'no position was steered'}")
    say(f"KL to the unsteered model {number(facts['kl'])} nats a token;  perplexity under it: {perplexity}")
