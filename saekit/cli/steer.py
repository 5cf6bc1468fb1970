"""The command steer: generation with a feature turned on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import options
from saekit.cli.concepts import by_concept
from saekit.cli.interventions import InterventionOptions
from saekit.cli.output import console, emit, number, print_section, quiet_libraries, say, say_line, say_path, text
from saekit.cli.scatter import scatter
from saekit.cli.subject import WS_OR_MODEL, contexts, open_subject
from saekit.cli.values import count

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer import Intervention
    from saekit.workspace.workspace import Workspace

WEAK = 0.25
"""A feature with an output score below those of three quarters of its dictionary's features gets a warning."""


@dataclass(frozen=True)
class SteeringOptions:
    """Where to steer, and what to compare with."""

    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept",
            help="Name of a concept to steer towards: of the features that a search finds, the one that a trial on texts of the "
            "workspace's corpus finds best is clamped at the strength that did best. May be repeated.",
            metavar="NAME",
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
class ScanOptions:
    """Whether to scan strengths."""

    scan: Annotated[
        str | None,
        typer.Option(
            "--scan",
            help="Generate at several strengths in one batch, and show the target against its costs: .2:1.5 (eight strengths), "
            ".2:1.5:5, or .2,.5,1. They multiply the strength that is given, or 1norm.",
            metavar="STRENGTHS",
            show_default=False,
        ),
    ] = None
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Word that a scan counts. May be repeated. [default: the 20 tokens that steering raises most]",
            metavar="WORD",
            show_default=False,
        ),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with the pictures of a scan to this file.", show_default=False),
    ] = None


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
    chat: Annotated[
        bool, typer.Option("--chat", help="Write each prompt as a user's message, with the tokenizer's chat template.")
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=f"Texts of a model without a workspace to measure strengths on. {options.TEXTS} May be repeated. "
            "[default: lab for lab]",
            show_default=False,
        ),
    ] = None,
    name: options.NAME = "",
    as_json: options.JSON = False,
    *,
    given: InterventionOptions,
    steering: SteeringOptions,
    scanning: ScanOptions,
    generation: GenerationOptions,
    load: options.LoadOptions,
) -> None:
    """Generate with and without features, other objects or vectors turned on, side by side and from the same seed.

    1042 clamps the feature to half the typical norm of its site, 1042:0.8norm to 0.8 of that norm, 1042:2 to twice the feature's
    maximum activation, 1042:q.99 to the 0.99 quantile of its activations.

    --ref takes any object by its name, --ranking the first objects that `saekit locate` found, --vector a vector of `saekit
    vector fit`, which is added: french:0.8norm makes it 0.8 times as long as the typical activation, french:2 adds twice the
    vector. All but --feature work with a model as well as with a workspace.

    An operation stands before the strength, 1042:cap:2, or for all objects in --op. clamp sets the coefficient to the strength,
    add adds the strength, scale multiplies by it, cap and floor limit it; ablate sets 0, mean the mean over text, resample
    values of random tokens, and project-out removes the object's direction from the activation. These four take no strength.

    --when 'feature:resid_post.3/12 > 2' steers only at tokens where the condition holds, '... in prompt' only if the largest
    value of the prompt meets it. --decay half:16 halves the effect every 16 tokens.

    --change takes any of these, the name of an intervention that the workspace keeps, or JSON as the steering bench of `saekit
    serve` writes it.

    The random control shows whether the effect is specific to the feature: it changes the activations by the same norm in a
    random direction. `--no-control` leaves it out. `--samples 8` generates eight continuations of each prompt by sampling, which
    shows an effect more reliably than one greedy continuation.

    `--dola low` subtracts, at every token, what an early layer already predicts: alone, or with features and vectors.

    --concept music searches for features, tries each on openings of the workspace's corpus, and clamps the best. It prints the
    numbers, for --feature.

    Example: `saekit steer pythia --concept music "Once upon a time"`

    Steering works best with features that promote the words of a concept: `saekit search WORKSPACE CONCEPT --by says`. A feature
    that fires on a concept's tokens does not necessarily make the model produce them. The last lines say what `saekit index`
    measured of each feature: its output score (how likely a clamp makes the tokens that it promotes) and the tokens that gain.

    Example: `saekit steer pythia --feature 1042:0.5norm "Once upon a time"`

    --scan .2:1.5 generates at eight strengths in one batch and prints the target against KL, perplexity and repetition.

    Example: `saekit steer pythia --feature 1042 --scan .2:1.5 --html scan.html "Once upon a time"`

    Example: `saekit steer gpt2 --ref neuron:2/17:ablate --when "position > 4" "Once upon a time"`

    Example: `saekit steer pythia --feature resid_post.3@gemma/1042:0.5norm "Once upon a time"`
    """
    quiet_libraries()
    from saekit.errors import ConfigError
    from saekit.steer import combine, compare
    from saekit.workspace.asked import asked_for

    subject = open_subject(place, load)
    ws, lm = subject.workspace, subject.lm
    rows = partial(contexts, subject, data, texts=32, context=64)
    decoding = steering.decoding()
    tried = by_concept(subject, steering.concept or [], name, progress=not as_json)
    given = replace(given, feature=[*(given.feature or []), *tried.features])
    asked = given.asked(name, "1norm" if scanning.scan else None)
    changes = [asked_for(ws, lm, asked, rows)] if asked.any or not decoding else []
    intervention = combine(changes)
    texts: Any = chats(lm, prompts) if chat else prompts
    if scanning.scan is not None:
        if decoding or generation.sampling:
            raise ConfigError(
                "A scan decodes with the model's own settings.", "Leave out --dola, --temperature, --top-p, --top-k."
            )
        show_scan(lm, texts, intervention, scanning, steering, generation, as_json)
        return
    if scanning.html is not None or scanning.target:
        raise ConfigError("--html and --target belong to a scan.", "Give --scan .2:1.5, or leave them out.")
    result = compare(
        lm,
        texts,
        intervention,
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.sample or None,
        n_samples=generation.n_samples,
        control=steering.control and bool(changes),
        decoding=decoding,
        positions=steering.positions,
        seed=generation.seed,
        **generation.sampling,
    )
    facts = {**result.to_dict(), "measured": ws.causal(given.feature, name=name) if ws is not None and given.feature else []}
    facts |= {"concepts": tried.to_dict()} if steering.concept else {}
    if as_json:
        emit(facts)
        return
    _print_steered(prompts, generation.n_samples, facts)
    for each in facts["measured"]:
        assert ws is not None, "measures come from a workspace"
        _print_measured(ws, each)


def show_scan(
    lm: LanguageModel,
    prompts: Any,
    intervention: Intervention,
    scanning: ScanOptions,
    steering: SteeringOptions,
    generation: GenerationOptions,
    as_json: bool,
) -> None:
    """Scan strengths, and show the table and the picture."""
    from saekit.evaluate.steering.mentions import Mentions
    from saekit.evaluate.steering.scan import ScanSettings, parse_strengths, scan

    assert scanning.scan is not None
    settings = ScanSettings(
        generation.n_samples,
        generation.sample or None,
        generation.max_new_tokens,
        generation.seed,
        steering.control,
        steering.positions,
    )
    mentions = Mentions(scanning.target) if scanning.target else None
    found = scan(lm, prompts, intervention, parse_strengths(scanning.scan), mentions, settings)
    if scanning.html is not None:
        from saekit.report.scan import write_scan

        write_scan(found, scanning.html)
    if as_json:
        emit(found.to_dict() | ({"page": str(scanning.html)} if scanning.html is not None else {}))
        return
    print_section(found.section)
    if found.raised:
        say("the tokens: " + ", ".join(map(repr, found.raised)))
    if scanning.html is not None:
        say_path("page: ", scanning.html)
        return
    arms = {"steered": "●", "random": "○"} if steering.control else {"steered": "●"}
    curves = found.curves()
    for line in scatter([(x, y, arms[name]) for name in reversed(arms) for x, y in curves[name]], "KL", "target"):
        say_line("", line)
    say("   ".join(f"{mark} {name}" for name, mark in arms.items()))


def chats(lm: LanguageModel, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt as a user's message, up to where the answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    from saekit.errors import ConfigError
    from saekit.lm.chat import ChatTemplate

    try:
        template = ChatTemplate(lm.text)
    except ConfigError as error:
        raise ConfigError(f"{lm.name} has no chat template.", "Use a model for chats, or leave out --chat.") from error
    rendered = [template.render([{"role": "user", "content": prompt}], to_answer=True) for prompt in prompts]
    return lm.text.plain_ids(rendered)


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
