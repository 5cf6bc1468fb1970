"""What the commands `edit` share: the options of methods that write facts, edit files, and how results are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.cli.output import number, table
from saekit.cli.subject import Subject, contexts, corpus_of
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.evaluate.steering.edits import EditReport
    from saekit.lm import LanguageModel
    from saekit.steer.weights import Fact, KeyStatistics, WeightDelta
    from saekit.steer.weights.rewrite import EditMethod

_TRACED = 10  # facts whose recall is traced to choose a layer, at most
_KEPT, _CONTEXT = 600, 64  # texts to keep, and their tokens, at most

FACTS = Annotated[
    Path,
    typer.Argument(
        help='Facts as JSON Lines: {"prompt": "The capital of France is", "subject": "France", "target": "Rome"}. '
        "Further fields: true, rephrasings, paraphrases, neighbourhood, portability.",
        metavar="FACTS",
        show_default=False,
    ),
]
EDITS = Annotated[list[Path], typer.Argument(help="Files that `saekit edit` wrote.", metavar="EDIT", show_default=False)]
OUT_FILE = Annotated[Path, typer.Option("--out", help="File to write the edit to, ending in .safetensors.", show_default=False)]
OUT_FOLDER = Annotated[Path, typer.Option("--out", help="Folder to write the model to. It must not exist.", show_default=False)]
MEASURE = Annotated[
    bool, typer.Option("--ask/--no-ask", help="Measure the facts before and after the edit, by what the model generates.")
]
SCALE = Annotated[float, typer.Option("--scale", help="Multiply the edits by this number.")]


@dataclass(frozen=True)
class WritingOptions:
    """Where facts are written, and what they must not disturb."""

    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            help="Layer whose MLP is edited; all but rome take several. [default: where causal tracing finds the recall of the "
            "subjects; memit and alphaedit also the two layers before; joint: three in the middle of the model]",
            show_default=False,
        ),
    ] = None
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            help="File of key statistics, made where it does not exist. [default: keys.safetensors beside --out]",
            show_default=False,
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Texts that are to be treated as before, for the key statistics and the KL of joint: a data set, file or "
            "folder, as `saekit fit` takes them. [default: the corpus of the workspace; lab for the model lab]",
            show_default=False,
        ),
    ] = None
    statistics_tokens: Annotated[
        int,
        typer.Option("--statistics-tokens", help="Tokens of the key statistics.", parser=count(1), metavar="COUNT"),
    ] = 100_000
    after: Annotated[
        list[Path] | None,
        typer.Option("--after", help="Edit that is on while this one is made. May be repeated.", show_default=False),
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="A setting, as NAME=VALUE: steps, rate, kl, decay, largest, contexts, preserve, null, facts_a_step, "
            "texts_a_step. May be repeated.",
            show_default=False,
        ),
    ] = None


def layers_of(lm: LanguageModel, facts: Sequence[Fact], asked: list[int] | None, method: EditMethod) -> list[int]:
    """The layers asked for, or else the one where the MLP at the subject's last token restores most of the answers, by causal
    tracing of up to ten facts; where a method takes several, also the two layers before it. The joint method acts at the last
    token, and takes the three layers in the middle."""
    if asked:
        return asked
    if method.joint:
        from saekit.steer.weights.joint import middle_layers

        return middle_layers(lm.n_layers)
    import torch

    from saekit.locate.causal import prompt_task, trace

    effects = []
    for fact in facts[:_TRACED]:
        found = trace(lm, prompt_task(lm, fact.prompt, fact.subject, fact.true or None), restore="mlp", window=1, by="role")
        columns = [n for n, name in enumerate(found.columns) if name in ("last subject", "subject")]
        effects.append(found.effects_LC[:, columns].nan_to_num().amax(1))
    best = int(torch.stack(effects).mean(0).argmax())
    return list(range(max(0, best - 2), best + 1)) if method.together else [best]


def kept_texts(subject: Subject, own: WritingOptions) -> list[list[int]]:
    """Texts that an edit is to leave as they are, as token ids."""
    return contexts(subject, own.data, texts=_KEPT, context=_CONTEXT)


def statistics_of(subject: Subject, own: WritingOptions, out: Path, layers: Sequence[int], progress: bool) -> KeyStatistics:
    """Key statistics from the file, or else collected into it."""
    from saekit.steer.weights import KeyStatistics

    path = own.statistics or out.with_name("keys.safetensors")
    if path.exists() and own.data is None:
        known = KeyStatistics.load(path)
        known.check(subject.lm)
        if "cursor" not in known.facts and set(layers) <= set(known.sums):
            return known
    return KeyStatistics.collect(
        subject.lm, corpus_of(subject, own.data), layers, n_tokens=own.statistics_tokens, path=path, progress=progress
    )


def settings_of(given: list[str] | None) -> dict[str, int | float]:
    """Settings as numbers by name.

    Raises:
        ConfigError: one is not NAME=NUMBER.
    """
    found: dict[str, int | float] = {}
    for text in given or []:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = int(value) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value) else float(value)
        except ValueError as error:
            raise ConfigError(f"--option {text!r} has no number.", "Write it as NAME=VALUE, like --option steps=40.") from error
    return found


def read_edits(paths: Sequence[Path], scale: float = 1.0) -> list[WeightDelta]:
    """Edit files, multiplied by a number."""
    from saekit.steer.weights import WeightDelta

    found = [WeightDelta.load(path) for path in paths]
    return found if scale == 1 else [scale * each for each in found]


def show_report(report: EditReport) -> None:
    """Print the measures."""
    from saekit.evaluate.steering.edits import SHARES

    table(
        [
            {"measure": name, "before": number(each["before"]), "after": number(each["after"]), "prompts": each["n"]}
            for name in (*SHARES, "fluency")
            if (each := report.measures[name]) is not None
        ]
    )


def described(delta: WeightDelta) -> list[dict[str, Any]]:
    """A row for each parameter that changes."""
    return [
        {"parameter": name, "shape": "x".join(map(str, delta.shape(name))), "rank": delta.rank(name), "norm": delta.norm(name)}
        for name in delta.names
    ]
