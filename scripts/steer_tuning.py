"""Targeted optimisation on the laboratory model: planted biases removed by tuning located objects, and a relearning attack.

Biases. Heads or neurons are located by attribution patching on training prompts, as many as fit into 2 % of the parameters, and
tuned towards parity with KL to the unedited model on training documents. Bias, tasks and KL are measured on held-out prompts and
documents before and after. Control: random objects, as many as fit into the same share.

Relearning. French is unlearned (negative preference optimisation) by tuning the neurons that LAPE finds for it. Then the whole
model is fine-tuned on a few French texts. The cross-entropy of held-out French is compared with that of a model that was never
unlearned and is fine-tuned on the same texts, step by step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from random import Random
from typing import Any

import torch

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.evaluate.lab import Measurement, measure
from saekit.evaluate.steering.tuned import preservation
from saekit.lab.bench import bind
from saekit.lab.registry import TASKS
from saekit.locate.registry import METHODS
from saekit.steer.optimise import MaskedWeights, Problem, TuneSettings, WeightMask, objective, train, tune
from saekit.steer.optimise.objectives import Loss
from saekit.tasks import Labelled, Ranking, Task

FRACTION = 0.02
BIASES = {
    "professions": ("gender_bias_he", "gender_bias_she", "gender_neutral"),
    "answer position": ("position_bias",),
    "sycophancy": ("sycophancy",),
}
"""Tasks whose share of answers is tuned to one half. Objects are located on the first."""
PRESERVE = (1.0, 10.0)
"""Weights of the KL to the unedited model."""
RELEARN = (0, 1, 2, 4, 8, 16, 32)


def section(quick: bool) -> list[dict[str, Any]]:
    """One row for each bias and kind of object, and one for each model of the relearning attack."""
    lm = LanguageModel.load("lab", dtype="float32")
    names = ("multiple_choice", "fact_capital", "position_bias") if quick else sorted(TASKS)
    before = {each.task: each for each in measure(lm, names, n=20 if quick else 200, progress=False)}
    settings = TuneSettings(steps=5 if quick else 80, batch=8)
    rows = []
    for bias in ("answer position",) if quick else tuple(BIASES):
        for kind in ("heads", "neurons"):
            for preserve in PRESERVE[:1] if quick else PRESERVE:
                rows.append(fixed(lm, bias, kind, before, replace(settings, preserve=preserve)))
    return rows + relearned(lm, settings, quick)


def documents(lm: LanguageModel, n: int, split: Any, *, without: str = "", length: int = 40) -> list[list[int]]:
    """The first tokens of documents, but for those of genres whose name contains `without`."""
    found = [each.text for each in lab.documents(split=split, seed=7, n=2 * n) if not without or without not in each.genre]
    return [row[:length] for row in lm.text.ids(found[:n])]


def joined(tasks: Sequence[Task]) -> Task:
    """The prompts of several tasks as one task."""
    parts = {
        name: tuple(row for task in tasks for row in getattr(task, name)) for name in ("clean", "corrupted", "answers", "foils")
    }
    return Task("+".join(task.name for task in tasks), **parts)


def located(lm: LanguageModel, task: Task, kind: str) -> Ranking:
    """All objects of a kind by attribution patching."""
    spaces = [lm.space(site) for site in lm.sites() if site.kind == kind]
    found: Ranking = METHODS["attribution_patching"].function(lm, task, spaces=spaces, progress=False)
    return found


def fixed(lm: LanguageModel, bias: str, kind: str, before: dict[str, Measurement], settings: TuneSettings) -> dict[str, Any]:
    """Tune the located objects, and random ones; measure the bias and every task."""
    started = time.monotonic()
    names = BIASES[bias]
    tasks = [bind(name, 150, 1, "train", 0, lm.text.tokenizer) for name in names]
    loss = objective(lm, joined(tasks), "share")
    ranking = located(lm, tasks[0][:40], kind)
    problem = Problem(lm, loss, documents(lm, 400, "train"), settings, ranking, FRACTION, progress=False)
    found = tune(problem, "pinpoint" if kind == "heads" else "masked")
    seconds = time.monotonic() - started
    row: dict[str, Any] = {
        "part": "bias",
        "bias": bias,
        "preserve": settings.preserve,
        "objects": kind,
        "count": found.count,
        "share": found.share,
    }
    held = documents(lm, 100, "heldout")
    row["kl"] = preservation(lm, found, held)
    with found.on(lm):
        after = {each.task: each for each in measure(lm, tuple(before), n=max(m.n for m in before.values()), progress=False)}
        row["targets"] = {name: (before[name].value, after[name].value) for name in names}
    losses = {name: points_lost(before[name], after[name]) for name in before if name not in names}
    worst = max(losses, key=lambda name: losses[name])
    row |= {"worst_task": worst, "points_lost": losses[worst], "over_2_points": {n: v for n, v in losses.items() if v > 2}}
    order = list(ranking.refs)
    Random(0).shuffle(order)
    scores = tuple(float(len(order) - n) for n in range(len(order)))
    control = tune(replace(problem, objects=Ranking(tuple(order), scores)), "masked")
    with control.on(lm):
        row["random"] = {name: strength(lm, name) for name in names}
    row["random_kl"] = preservation(lm, control, held)
    return row | {"tuning_seconds": seconds}


def strength(lm: LanguageModel, name: str, n: int = 200) -> float:
    """P(answer) / (P(answer) + P(foil)), the mean over held-out prompts."""
    return measure(lm, [name], n=n, progress=False)[0].value


def points_lost(before: Measurement, after: Measurement) -> float:
    """Points by which a task became worse: accuracy lost, refusals gained, or the change of a planted share either way."""
    change = 100 * (after.value - before.value)
    task = TASKS[before.task]
    if task.metric == "strength":
        return abs(change)
    return change if task.at_most is not None else -change


def relearned(lm: LanguageModel, settings: TuneSettings, quick: bool) -> list[dict[str, Any]]:
    """The cross-entropy of held-out French after each number of steps on a few French texts."""
    french, english = zip(*lab.contrast("language_french", 100, "train"))
    languages = {name: lab.contrast(f"language_{name}", 40, "train").positive for name in ("french", "german", "spanish")}
    labelled = [(text, name) for name, texts in languages.items() for text in texts] + [(t, "english") for t in english[:40]]
    data = Labelled(tuple(text for text, _ in labelled), labels=tuple(name for _, name in labelled))
    ranking: Ranking = METHODS["lape"].function(lm, data, label="french", share=0.1, progress=False)
    loss = objective(lm, [row[:40] for row in lm.text.ids(french)], "forget")
    neutral = documents(lm, 400, "train", without="french")
    forgetting = replace(settings, lr=5 * settings.lr)
    found = tune(Problem(lm, loss, neutral, forgetting, ranking, FRACTION, progress=False), "masked")
    held = {
        "French": texts_loss(lm, lab.contrast("language_french", 40, "heldout").positive),
        "other": objective(lm, documents(lm, 80, "heldout", without="french"), "texts"),
    }
    examples = [row[:40] for row in lm.text.ids(lab.contrast("language_french", 16, "train", seed=11).positive)]
    rows = []
    models: dict[str, AbstractContextManager[Any]] = {"never unlearned": nullcontext(()), "unlearned": found.on(lm)}
    for name, state in models.items():
        with state:
            rows.append({"part": "relearning", "model": name, **attacked(lm, examples, held, quick)})
            rows[-1] |= {"count": found.count, "share": found.share} if name == "unlearned" else {}
    return rows


def texts_loss(lm: LanguageModel, texts: Sequence[str]) -> Loss:
    return objective(lm, [row[:40] for row in lm.text.ids(list(texts))], "texts")


def attacked(lm: LanguageModel, examples: list[list[int]], held: dict[str, Loss], quick: bool) -> dict[str, Any]:
    """Held-out cross-entropies by number of steps of full fine-tuning on the examples."""
    steps = RELEARN[:3] if quick else RELEARN
    curves: dict[str, dict[int, float]] = {name: {} for name in held}

    @torch.no_grad()
    def note(done: int) -> None:
        if done in steps:
            for name, loss in held.items():
                curves[name][done] = float(loss(range(len(loss.groups))))

    note(0)
    adjustment = MaskedWeights(lm, WeightMask.everything(lm))
    with adjustment.training():
        loss = objective(lm, examples, "texts")
        train(lm, adjustment, loss, None, TuneSettings(steps=steps[-1], batch=8, lr=3e-4), watch=note, progress=False)
    return {"examples": len(examples), "curves": curves}


def show(rows: list[dict[str, Any]]) -> None:
    """Two tables."""
    table(
        [
            {
                "bias": row["bias"],
                "preserve": row["preserve"],
                "tuned": f"{row['objects']}, {row['count']:,} ({row['share']:.2%})",
                "before -> after": ", ".join(f"{b:.1%} -> {a:.1%}" for b, a in row["targets"].values()),
                "KL": f"{row['kl']:.5f}",
                "worst other task": f"{row['worst_task']}: {row['points_lost']:.1f} points",
                "random objects": f"{', '.join(f'{v:.1%}' for v in row['random'].values())}, KL {row['random_kl']:.5f}",
                "s": f"{row['tuning_seconds']:.0f}",
            }
            for row in rows
            if row["part"] == "bias"
        ],
        title="planted biases towards 50 %, held-out prompts",
    )
    table(
        [
            {"model": row["model"], "text": text} | {f"{step} steps": f"{value:.3f}" for step, value in curve.items()}
            for row in rows
            if row["part"] == "relearning"
            for text, curve in row["curves"].items()
        ],
        title="relearning French from 16 texts: cross-entropy of held-out text, nats a token",
    )
