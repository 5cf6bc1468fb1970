"""Running recipes: data, trials, and reports in a folder, of which a stopped run resumes the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.builtin import is_lab
from saekit.errors import ConfigError
from saekit.evaluate.changed import Change
from saekit.files import write_whole
from saekit.improve.data import Halves, halves_of_file, halves_of_lab
from saekit.improve.recipes import RECIPES, chosen
from saekit.improve.registry import Recipe
from saekit.improve.report import Report
from saekit.improve.trial import Trial
from saekit.json_files import read_json
from saekit.plugins import nearest
from saekit.steer.weights.quantise import Quantised
from saekit.tasks import Ranking

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_QUICK = 12
"""Examples in quick mode, each for fitting and for measuring."""


@dataclass(frozen=True)
class Settings:
    """How recipes are run.

    Attributes:
        data: files by the name of the input; the name "" stands for the first input. Inputs without a file come from the
            laboratory, if the model is the laboratory's.
        out: folder of the reports; None keeps none. Recipes whose report is there with the same settings are not run again.
        neutral: neutral texts as rows of token ids, for side effects; None: the laboratory's.
        seed: of everything that is drawn.
        n: number of examples of the laboratory, each for fitting and for measuring; None: as many as the recipe says.
        quick: few examples and steps, to see whether a recipe runs.
        force: measure again.
        progress: show progress bars.
    """

    data: Mapping[str, str | Path] = field(default_factory=dict)
    out: str | Path | None = None
    neutral: Sequence[Sequence[int]] | None = None
    seed: int = 0
    n: int | None = None
    quick: bool = False
    force: bool = False
    progress: bool = True


def improve(lm: LanguageModel, pattern: str, settings: Settings | None = None) -> list[Report]:
    """Run recipes, and return their reports.

    Args:
        lm: the model, with its dictionaries attached where features are to be used. It is the same afterwards. The model "lab"
            stands for the laboratory: recipes that need a behaviour of another of its models load that one (`Recipe.model`).
        pattern: a recipe (`persona.components.sycophancy_heads`), a paradigm, a scenario, or "all".
        settings: data, folder and sizes.

    Raises:
        ConfigError: there is no such recipe, data are missing, or a file cannot be used; found before anything is run.
    """
    settings = settings or Settings()
    names = chosen(pattern)
    for name in names:
        _check_inputs(lm, name, settings)
    models: dict[str, tuple[LanguageModel, dict[str, float]]] = {lm.name: (lm, {})}
    found = []
    for name in names:
        lm, baseline = _model_of(name, lm, models)
        kept = None if settings.out is None else Path(settings.out) / name
        if kept is not None and not settings.force and (report := _kept(kept, lm, name, settings)) is not None:
            found.append(report)
            continue
        trial = trial_of(lm, name, settings, baseline)
        report = RECIPES[name].function(trial)
        if kept is not None:
            _keep(kept, trial, report, settings)
        found.append(report)
    return found


def _model_of(
    name: str, lm: LanguageModel, models: dict[str, tuple[LanguageModel, dict[str, float]]]
) -> tuple[LanguageModel, dict[str, float]]:
    """The model of a recipe, and the values of the laboratory's tasks on it."""
    first = next(iter(models))
    wanted = RECIPES[name].model if first == "lab" else first
    if wanted not in models:
        models[wanted] = (type(lm).load(wanted, dtype="float32", device=str(lm.device)), {})
    return models[wanted]


def trial_of(lm: LanguageModel, name: str, settings: Settings, baseline: dict[str, float] | None = None) -> Trial:
    """What a recipe works with.

    Args:
        lm: the model.
        name: of the recipe.
        settings: data and sizes.
        baseline: values of the laboratory's tasks on the unchanged model, shared by trials.
    """
    return Trial(
        lm,
        name,
        _data(lm, RECIPES[name], settings),
        _neutral(lm, settings),
        settings.seed,
        settings.quick,
        settings.progress,
        {} if baseline is None else baseline,
    )


def write_examples(pattern: str, folder: str | Path) -> list[Path]:
    """Write an example file for each input of recipes: `NAME.INPUT.jsonl`. Files that exist are left as they are.

    Raises:
        ConfigError: there is no such recipe.
        StorageFull, Unwritable: a file cannot be written.
    """
    written = []
    for name in chosen(pattern):
        for key, row in RECIPES[name].inputs.items():
            path = Path(folder) / f"{name}.{key}.jsonl"
            if not path.exists():
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in row.example)
                write_whole(path, lines)
            written.append(path)
    return written


def _check_inputs(lm: LanguageModel, name: str, settings: Settings) -> None:
    inputs = RECIPES[name].inputs
    first = next(iter(inputs), "")
    for given in settings.data:
        if given and given not in inputs:
            raise ConfigError(f"The recipe {name} has no input {given!r}.", nearest(given, inputs))
    missing = [key for key in inputs if key not in settings.data and not ("" in settings.data and key == first)]
    if missing and not is_lab(lm.name):
        kinds = ", ".join(f"--data {key}=FILE ({inputs[key].what})" for key in missing)
        raise ConfigError(
            f"The recipe {name} needs data: {kinds}.", f"`saekit improve {name} --example FOLDER` writes example files."
        )


def _data(lm: LanguageModel, recipe: Recipe, settings: Settings) -> dict[str, Halves]:
    found = {}
    for number, (key, row) in enumerate(recipe.inputs.items()):
        file = settings.data.get(key, settings.data.get("") if number == 0 else None)
        n = min(row.n, _QUICK) if settings.quick else settings.n or row.n
        if file is None:
            found[key] = halves_of_lab(lm, row, n, settings.seed)
        else:
            found[key] = halves_of_file(lm, row, Path(file), settings.seed)
    return found


def _neutral(lm: LanguageModel, settings: Settings) -> Sequence[Sequence[int]]:
    if settings.neutral is not None:
        return settings.neutral
    from saekit import lab

    n, length = (4, 32) if settings.quick else (32, 128)
    rows = lm.text.ids([each.text for each in lab.documents(n=n, split="heldout", seed=10_007)])
    return [row[: min(length, lm.max_context)] for row in rows]


def _facts(lm: LanguageModel, name: str, settings: Settings) -> dict[str, Any]:
    """What a report is of: with other facts it is measured again."""
    from saekit.ledger import file_sha256

    return {
        "recipe": name,
        "model": lm.fingerprint()["model"],
        "dictionaries": {str(address): sae.fingerprint() for address, sae in lm.attached.items()},
        "data": {key: file_sha256(Path(path)) for key, path in settings.data.items()},
        "seed": settings.seed,
        "n": settings.n,
        "quick": settings.quick,
    }


def _kept(folder: Path, lm: LanguageModel, name: str, settings: Settings) -> Report | None:
    """The report in a folder, where it is of the same recipe, model, data and settings."""
    if not (folder / "report.json").exists():
        return None
    data = read_json(folder / "report.json")
    if not isinstance(data, dict) or data.get("of") != _facts(lm, name, settings):
        return None
    return Report.from_dict({key: value for key, value in data.items() if key != "of"})


def _keep(folder: Path, trial: Trial, report: Report, settings: Settings) -> None:
    """Write what was located and changed, and the report last, so that a folder with a report is whole."""
    from saekit.steer import Intervention

    folder.mkdir(parents=True, exist_ok=True)
    for name, each in trial.kept.items():
        if isinstance(each, Ranking):
            each.save(folder / f"{name}.json")
        elif isinstance(each, Quantised):
            each.save(folder / f"{name}.safetensors")
        elif isinstance(each, Change):
            for i, intervention in enumerate(each.interventions):
                if hasattr(intervention, "save"):  # edits that only measure, such as a skipped layer, have no file
                    suffix = "json" if isinstance(intervention, Intervention) else "safetensors"  # trained ones hold tensors
                    intervention.save(folder / f"intervention{i or ''}.{suffix}")
            for i, delta in enumerate(each.deltas):
                delta.save(folder / f"delta{i or ''}.safetensors")
    facts = report.to_dict() | {"of": _facts(trial.lm, trial.name, settings)}
    write_whole(folder / "report.json", json.dumps(facts, indent=1))
