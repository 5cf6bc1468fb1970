"""The command edit tune: train the weights of chosen objects, or a small change of activations."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli import completion, options
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.subject import WS_OR_MODEL, Subject, contexts, open_subject
from saekit.cli.values import count
from saekit.errors import ConfigError
from saekit.tensor_files import SUFFIX

if TYPE_CHECKING:
    from saekit.steer.optimise import Tuned
    from saekit.steer.optimise.masks import Objects
    from saekit.steer.optimise.objectives import Data

_HELD = 4
"""One row in this many is held out of files and neutral texts."""


@dataclass(frozen=True)
class DataOptions:
    """What the tuning is for."""

    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Prompts with answers, a contrast, or texts: a file (jsonl, json, yaml, csv), lab:NAME, or gen:NAME.",
            metavar="FILE_OR_NAME",
        ),
    ]
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="answers, share (of answer against foil; --option share=0.5 is parity), texts, prefer, forget, or a plugin's. "
            "[default: answers of prompts, prefer of a contrast, else texts]",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            help="Rows to tune on. [default: 100 of lab: and gen:, three of four of a file]",
            parser=count(1),
            metavar="COUNT",
            show_default=False,
        ),
    ] = None
    neutral: Annotated[
        list[str] | None,
        typer.Option(
            "--neutral",
            help=f"Texts on which predictions are to stay. {options.TEXTS} May be repeated. [default: the data of the workspace, "
            "lab for lab; none for another model]",
            show_default=False,
        ),
    ] = None
    neutral_texts: Annotated[
        int, typer.Option("--neutral-texts", help="Neutral contexts of 48 tokens at most.", parser=count(4), metavar="COUNT")
    ] = 200


@dataclass(frozen=True)
class MethodOptions:
    """What is trained."""

    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Weights: masked, pinpoint (heads), neft, sift, landermt, outside_core, full. Activations: vector, bias, reft, "
            "jola. Or one of a plugin.",
        ),
    ] = "masked"
    ref: Annotated[
        list[str] | None,
        typer.Option(
            "--ref",
            help="Object whose weights are tuned: head:3.2, neuron:2/17, weight:2.down_proj/17, matrix:2.down_proj, or "
            "site:resid_post.3 for a layer. May be repeated.",
            metavar="REF",
            show_default=False,
        ),
    ] = None
    ranking: Annotated[
        str | None,
        typer.Option(
            "--ranking",
            help="Ranking of `saekit locate`, by name in the workspace or file, in place of --ref.",
            show_default=False,
        ),
    ] = None
    fraction: Annotated[
        float | None,
        typer.Option(
            "--fraction",
            help="Share of all parameters that is tuned at most: the first objects that fit. Of neft, sift and landermt, the "
            "share of rows, entries or neurons chosen.",
            show_default=False,
        ),
    ] = None
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="Site where activations are changed. May be repeated.",
            metavar="SITE",
            autocompletion=completion.sites,
            show_default=False,
        ),
    ] = None
    option: options.METHOD_OPTIONS = None


@dataclass(frozen=True)
class LoopOptions:
    """How the training runs."""

    steps: Annotated[int, typer.Option("--steps", help="Steps of AdamW.", parser=count(1), metavar="COUNT")] = 100
    batch: Annotated[int, typer.Option("--batch", help="Rows in a step.", parser=count(1), metavar="COUNT")] = 16
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3
    preserve: Annotated[
        float, typer.Option("--preserve", help="Weight of the KL divergence to the unedited model on neutral texts.")
    ] = 1.0
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of the tuned weights alone.")] = 0.0
    seed: options.SEED = 0


def edit_tune(
    place: WS_OR_MODEL,
    out: Annotated[Path, typer.Option("--out", help="File to write the edit to, ending in .safetensors.", show_default=False)],
    as_json: options.JSON = False,
    *,
    data: DataOptions,
    method: MethodOptions,
    loop: LoopOptions,
    load: options.LoadOptions,
) -> None:
    """Tune the weights of located objects, or a small change of activations, and measure it on held-out data.

    The model itself does not change: the result is a file with a weight delta or an activation edit. A quarter of a file's rows
    and of the neutral texts are held out of the tuning; of the laboratory, its held-out split.

    Example: `saekit edit tune lab --data lab:position_bias --objective share --ref head:3.2 --out parity.safetensors`

    Example: `saekit edit tune study --data prompts.jsonl --ranking heads --method pinpoint --out heads.safetensors`

    Example: `saekit edit tune gpt2 --data pairs.jsonl --method reft --site resid_post.6 --option rank=4 --out reft.safetensors`
    """
    quiet_libraries()
    from saekit.evaluate.steering.tuned import preservation, target
    from saekit.steer.optimise import Problem, TuneSettings, objective, tune

    subject = open_subject(place, load)
    lm = subject.lm
    settings = TuneSettings(loop.steps, loop.batch, loop.lr, loop.weight_decay, loop.preserve, seed=loop.seed)
    train, held, name = _split(subject, data, loop.seed)
    neutral, neutral_held = _neutral(subject, data)
    of_objective, of_method = _options(data.objective, train, method)
    problem = Problem(
        lm,
        objective(lm, train, data.objective, of_objective),
        neutral,
        settings,
        _objects(subject, method),
        method.fraction,
        method.site or (),
        progress=not as_json,
    )
    if out.suffix != SUFFIX:
        raise ConfigError(f"The file {out} cannot hold an edit.", f"Give a name that ends in {SUFFIX}.")
    started = time.monotonic()
    found = tune(problem, method.method, of_method)
    seconds = time.monotonic() - started
    before, after = target(lm, held), target(lm, held, found)
    facts: dict[str, Any] = {
        "method": method.method,
        "objective": data.objective,
        "target": {"data": name, "rows": len(held), "before": before, "after": after},
        "efficacy": after.get("efficacy"),
        "parameters": {"count": found.count, "share": found.share},
        "preservation": None if neutral_held is None else {"kl": preservation(lm, found, neutral_held), "unit": "nats a token"},
        "seconds": seconds,
        "seed": loop.seed,
    }
    replace(found.change, facts={**found.change.facts, "tuned_on": name, "measured": facts}).save(out)
    _show(found, facts, out, as_json)


def _split(subject: Subject, data: DataOptions, seed: int) -> tuple[Data, Data, str]:
    """Data to tune on, held-out data, and their name.

    Raises:
        ConfigError: a file has too few rows.
    """
    from saekit.locate.data import DataChoice, data_of
    from saekit.tasks import Labelled

    lm, kind = subject.lm, data.data.partition(":")[0]
    if kind == "lab":
        found = [data_of(lm, data.data, DataChoice(data.prompts or 100, seed, split)) for split in ("train", "heldout")]
        return found[0], found[1], data.data.partition(":")[2]
    if kind == "gen":
        both = data_of(lm, data.data, DataChoice((data.prompts or 100) * _HELD // (_HELD - 1) + 1, seed))
    else:
        both = data_of(lm, data.data, DataChoice(None, seed))
    cut = len(both) - max(1, len(both) // _HELD)
    if cut < 1:
        raise ConfigError(f"{data.data} has {len(both)} row; one is held out.", "Give at least two rows.")
    first = min(cut, data.prompts or cut)
    name = Path(data.data).stem if kind == data.data else data.data.partition(":")[2]
    if isinstance(both, Labelled):
        if both.labels is None:
            raise ConfigError(f"{data.data} has spans; tuning takes texts with one label each.", "Give the field label.")
        return Labelled(both.texts[:first], both.labels[:first]), Labelled(both.texts[cut:], both.labels[cut:]), name
    return both[:first], both[cut:], name


def _neutral(subject: Subject, data: DataOptions) -> tuple[list[list[int]] | None, list[list[int]] | None]:
    """Neutral texts to train and to measure on; None where there are none."""
    from saekit.builtin import is_lab

    if data.neutral is None and subject.workspace is None and not is_lab(subject.lm.name):
        return None, None
    rows = [row for row in contexts(subject, data.neutral, texts=data.neutral_texts, context=48) if len(row) > 1]
    held = rows[::_HELD]
    kept = [row for n, row in enumerate(rows) if n % _HELD]
    if not kept:
        raise ConfigError(f"There are {len(rows)} neutral texts of two tokens or more.", "Give at least two.")
    return kept, held


def _objects(subject: Subject, method: MethodOptions) -> Objects | None:
    if method.ref and method.ranking:
        raise ConfigError("--ref and --ranking are both given.", "Give one of them.")
    if method.ranking is None:
        return method.ref or None
    from saekit.tasks import Ranking
    from saekit.workspace import rankings

    if subject.workspace is None or Path(method.ranking).exists():
        return Ranking.load(method.ranking)
    return rankings.read(subject.workspace, method.ranking)


def _options(name: str | None, data: Data, method: MethodOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the objective, and those of the method."""
    from saekit.cli.vector import numbers_of
    from saekit.steer.optimise.objectives import known_options

    given, known = numbers_of(method.option or []), known_options(name, data)
    return {k: v for k, v in given.items() if k in known}, {k: v for k, v in given.items() if k not in known}


def _show(found: Tuned, facts: dict[str, Any], path: Path, as_json: bool) -> None:
    if as_json:
        emit({**facts, "file": str(path), "losses": list(found.history.target)})
        return
    before, after = facts["target"]["before"], facts["target"]["after"]
    table(
        [{"held-out": name, "before": before[name], "after": after[name]} for name in before],
        title=f"{facts['target']['rows']} rows of {facts['target']['data']}",
    )
    say(f"tuned: {found.count:,} parameters, {found.share:.3%} of the model, in {facts['seconds']:.0f} s")
    if facts["preservation"] is not None:
        say(f"KL to the unedited model on held-out neutral text: {number(facts['preservation']['kl'])} nats a token")
    say_path("edit: ", path)
