"""Consolidation: two specialists that were fine-tuned from one model, merged into one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saekit.evaluate.changed import Change, Changed
from saekit.improve.report import Report
from saekit.improve.target import Target, right_answers
from saekit.improve.trial import Trial
from saekit.steer.merge import MergeSettings, merged_delta
from saekit.steer.optimise import Problem, TuneSettings, objective, tune
from saekit.steer.weights import WeightDelta, edit_facts
from saekit.tasks import Task

_SKILLS = ("first", "second")
_STEPS = 60
_METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("arithmetic", {}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.5, "scale": 1.5}),
    ("dare", {"drop": 0.5}),
    ("sens", {"scale": 2.0}),
    ("aim", {}),
)
"""Settings that are tried. `sens` weighs task vectors by sensitivities, and `aim` by activations."""
_TEXTS = {"sens": 2, "aim": 1}
_GOAL = 0.9


def merge(trial: Trial) -> Report:
    """Fine-tune a specialist of each skill, and merge both. The method is the one that keeps most of the weaker skill on the
    data for fitting (Yadav et al. 2023, TIES; Yu et al. 2023, DARE)."""
    specialists = [_specialist(trial, skill) for skill in _SKILLS]
    own = [_accuracies(trial, each)[i] for i, each in enumerate(specialists)]
    options = []
    with _folders(trial, specialists) as (base, folders):
        for name, change in _merged(trial, base, folders):
            kept = [found / max(1e-9, best) for found, best in zip(_accuracies(trial, change), own)]
            options.append((min(kept), name, change))
    _, name, change = max(options, key=lambda option: option[0])
    rows = [_row(trial, "before", Change())]
    rows += [_row(trial, f"specialist of {skill}", each) for skill, each in zip(_SKILLS, specialists)]
    rows += [_row(trial, each, merged) for _, each, merged in options]
    _add_shares(rows)
    tasks = [trial.held_out(skill) for skill in _SKILLS]
    return trial.report(
        _both(tasks),
        change,
        controls={
            "specialist_of_first": specialists[0],
            "specialist_of_second": specialists[1],
            "average": next(merged for _, each, merged in options if each == "linear"),
        },
        changed={"what": f"two specialists merged by {name}", "parameters": _parameters(change)},
        aimed=[task.name for task in tasks],
        figures=[*rows, {"figure": "share of the accuracy of each specialist that is to be kept", "wanted": _GOAL}],
    )


def _specialist(trial: Trial, skill: str) -> Change:
    """All weights, fine-tuned on one skill, with KL to the model before on neutral texts."""
    settings = TuneSettings(steps=2 if trial.quick else _STEPS, batch=12, lr=6e-4, preserve=0.5, seed=trial.seed)
    neutral = [row[:48] for row in trial.neutral]
    loss = objective(trial.lm, trial.fit(skill), "answers")
    found = tune(Problem(trial.lm, loss, neutral, settings, progress=trial.progress), "full")
    return Change(deltas=(found.change,))  # type: ignore[arg-type]


@contextmanager
def _folders(trial: Trial, specialists: Sequence[Change]) -> Iterator[tuple[Path, list[Path]]]:
    """The model and its specialists as model folders, for the time of the context."""
    with tempfile.TemporaryDirectory() as place:
        found = []
        for name, change in zip(("base", *_SKILLS), (Change(), *specialists)):
            folder = Path(place) / name
            with change.on(trial.lm):
                trial.lm.model.save_pretrained(folder)
            trial.lm.text.tokenizer.save_pretrained(folder)
            found.append(folder)
        yield found[0], found[1:]


def _merged(trial: Trial, base: Path, folders: list[Path]) -> Iterator[tuple[str, Change]]:
    texts = [[list(clean + answer) for clean, answer in zip(task.clean[:16], task.answers)] for task in map(trial.fit, _SKILLS)]
    given = {0: [], 1: [texts[0] + texts[1]], 2: texts}
    for method, options in _METHODS[:1] + _METHODS[2:3] if trial.quick else _METHODS:
        settings = MergeSettings(method, None, options, given[_TEXTS.get(method, 0)])
        delta, report = merged_delta(folders, base, settings=settings)
        facts = edit_facts(trial.lm, f"merge {method}", options=options, conflicts=report.conflicts)
        yield (
            " ".join([method, *(f"{key}={value:g}" for key, value in options.items())]),
            Change(deltas=(WeightDelta(delta.tensors, facts, delta.factors),)),
        )


def _accuracies(trial: Trial, change: Change) -> list[float]:
    """Right answers of each skill on data for fitting."""
    return [float(trial.measure(right_answers(trial.fit(skill), skill), change).mean()) for skill in _SKILLS]


def _both(tasks: Sequence[Task]) -> Target:
    parts = [right_answers(task, task.name) for task in tasks]

    def score(changed: Changed) -> torch.Tensor:
        return torch.cat([part.score(changed) for part in parts])

    return Target(f"{' and '.join(task.name for task in tasks)}: right answers", score)


def _row(trial: Trial, name: str, change: Change) -> dict[str, Any]:
    shares = {skill: float(trial.measure(right_answers(trial.held_out(skill), skill), change).mean()) for skill in _SKILLS}
    return {"model": name, **shares}


def _add_shares(rows: list[dict[str, Any]]) -> None:
    """Add the share of the accuracy of each specialist that each merged model keeps."""
    _, *own = rows[:3]
    for row in rows[3:]:
        for skill, specialist in zip(_SKILLS, own):
            row[f"kept of {skill}"] = row[skill] / max(1e-9, specialist[skill])


def _parameters(change: Change) -> int:
    return sum(int((tensor != 0).sum()) for delta in change.deltas for tensor in delta.tensors.values())
