"""The command merge, where it is given models: one model from several that were fine-tuned from the same base."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit.cli import options
from saekit.cli.output import emit, number, quiet_libraries, say, say_path, table
from saekit.cli.values import count
from saekit.errors import ConfigError

if TYPE_CHECKING:
    from saekit.steer.merge import MergeReport, MergeSettings

_CONTEXT = 256
"""Tokens to read of a text at most."""
_WEIGHTED = re.compile(r"(?P<name>.+?):(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")


@dataclass(frozen=True)
class ModelOptions:
    """How models are merged."""

    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="Model that the models were fine-tuned from: hub name, folder, or lab.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="arithmetic, ties, dare, dare_ties, sens, aim, acm, linear, slerp, or one of a plugin. [default: ties]",
            show_default=False,
        ),
    ] = None
    option: options.METHOD_OPTIONS = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Texts of the skill of each model, in the order of the models (sens), or one general set (aim, acm). "
            f"{options.TEXTS}",
            show_default=False,
        ),
    ] = None
    texts: Annotated[int, typer.Option("--texts", help="Texts to read of each source.", parser=count(1), metavar="COUNT")] = 64

    @property
    def given(self) -> bool:
        """Whether an option says that models are meant."""
        return any(each is not None for each in (self.base, self.method, self.option, self.data))


def is_model(place: str) -> bool:
    """Whether a place is the folder of a model and no workspace."""
    folder = Path(place)
    return (folder / "config.json").is_file() and not (folder / "features.sqlite").exists()


def split_weight(place: str) -> tuple[str, float]:
    """A model and its weight: "math:0.5" -> ("math", 0.5). A folder whose name looks so is a folder."""
    match = None if Path(place).exists() else _WEIGHTED.fullmatch(place)
    return (match["name"], float(match["weight"])) if match else (place, 1.0)


def merge_models(places: list[str], out: Path, chosen: ModelOptions, as_json: bool) -> None:
    """Merge models and say what was done."""
    quiet_libraries()
    from saekit.steer.merge import merge_models as merge
    from saekit.steer.merge import merged_delta

    weighted = [split_weight(place) for place in places]
    models, settings = [name for name, _ in weighted], _settings(chosen, [weight for _, weight in weighted])
    as_delta = out.suffix == ".safetensors"
    if as_delta:
        if chosen.base is None:
            raise ConfigError("The base model, whose weights are to change, is missing.", "Name it: --base MODEL.")
        delta, report = merged_delta(models, chosen.base, settings=settings, progress=not as_json)
        delta.save(out)
    else:
        report = merge(models, out, base=chosen.base, settings=settings, progress=not as_json)
    if as_json:
        emit({"file" if as_delta else "folder": str(out.absolute()), **report.to_dict()})
    else:
        _show(report, out)


def _settings(chosen: ModelOptions, weights: list[float]) -> MergeSettings:
    from saekit.steer.merge import MERGES, MergeSettings

    method = chosen.method or "ties"
    row = MERGES.find(method)
    if chosen.data and row.texts == "none":
        raise ConfigError(f"--data is given, and the method {method} reads no texts.", "Leave --data out.")
    own = _numbers(chosen.option or [])
    return MergeSettings(method, weights, own, _texts(chosen) if chosen.data else ())


def _numbers(given: list[str]) -> dict[str, float]:
    """Settings as numbers by name."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(
                f"--option {text!r} has no number.", "Write it as NAME=VALUE, like --option density=0.3."
            ) from error
    return found


def _texts(chosen: ModelOptions) -> list[list[list[int]]]:
    """Token ids of the texts of each source. The models share the tokenizer of the base."""
    from saekit.cli.subject import Subject, contexts
    from saekit.lm import LanguageModel

    if chosen.base is None:
        raise ConfigError("The base model is missing.", "Name it: --base MODEL.")
    subject = Subject(LanguageModel.load(chosen.base), None)
    return [contexts(subject, [source], texts=chosen.texts, context=_CONTEXT) for source in chosen.data or []]


def _show(report: MergeReport, out: Path) -> None:
    table(
        [
            {"model": each["model"], "weight": each["weight"], "norm": each["norm"], "trimmed": f"{each['trimmed']:.1%}"}
            for each in report.models
        ],
        title="Task vectors",
    )
    rows = [
        {
            "layer": "other" if row["layer"] is None else str(row["layer"]),
            **{f"norm {n}": value for n, value in enumerate(row["norms"], 1)},
            "norm merged": row["norm"],
            "trimmed": f"{sum(row['trimmed']) / len(row['trimmed']):.1%}",
            "sign conflicts": f"{row['conflicts']:.1%}",
        }
        for row in report.layers
    ]
    table(rows, title="Layers")
    say(f"{report.parameters:,} weights; signs conflict in {report.conflicts:.1%} of those that any model changes.")
    pairs = [
        f"{i + 1} and {j + 1}: {number(value)}"
        for i, row in enumerate(report.cosines)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    if pairs:
        say(f"Cosines of task vectors {', '.join(pairs)}.")
    for sentence in report.remarks:
        say((sentence, "yellow"))
    say_path("Written to ", out)
