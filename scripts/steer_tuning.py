"""Targeted optimisation on the laboratory model: planted biases removed by tuning located objects, and a relearning attack.

Biases. Heads or neurons are located by attribution patching on training prompts, as many as fit into 2 % of the parameters, and
tuned towards parity with KL to the unedited model on training documents. The weight of that KL is chosen on training prompts that
are not tuned on: of the weights that come near parity, the one whose worst other task loses least. Bias, tasks and KL are then
measured once, on held-out prompts and documents, before and after. Control: random objects, as many as fit into the same share.

Relearning. French is unlearned (negative preference optimisation) by tuning the neurons that LAPE finds for it. Then the whole
model is fine-tuned on a few French texts. The cross-entropy of held-out French is compared with that of a model that was never
unlearned and is fine-tuned on the same texts, step by step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

from saekit import LanguageModel, lab
from saekit.cli.output import table
from saekit.evaluate.lab import Measurement, measure, measure_task
from saekit.evaluate.steering.tuned import preservation
from saekit.lab.bench import BoundTask, bind
from saekit.lab.registry import TASKS
from saekit.lab.splits import Split
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
PRESERVE = (1.0, 10.0, 100.0)
"""Weights of the KL to the unedited model that are tried."""
TUNED = 150
"""Prompts of a bias that are tuned on: the first ones of the training split. Those after them choose the weight."""
CHOOSE, REPORT = 200, 400
"""Prompts of each task on which the weight is chosen, of the training split, and on which is reported, of the held-out one."""
SIZES: dict[Split, int] = {"train": CHOOSE, "heldout": REPORT}
NEAR = 0.04
"""Distance from parity that a weight may leave on the prompts that choose it."""
RELEARN = (0, 1, 2, 4, 8, 16, 32)


def section(quick: bool) -> list[dict[str, Any]]:
    """One row for each bias and kind of object, and one for each model of the relearning attack."""
    lm = LanguageModel.load("lab", dtype="float32")
    names = ("multiple_choice", "fact_capital", "position_bias") if quick else tuple(sorted(TASKS))
    trials = {split: Asked.of(lm, names, split, 20 if quick else n) for split, n in SIZES.items()}
    settings = TuneSettings(steps=5 if quick else 80, batch=8)
    rows = []
    for bias in ("answer position",) if quick else tuple(BIASES):
        for kind in ("heads", "neurons"):
            rows.append(fixed(lm, bias, kind, trials, settings, PRESERVE[:2] if quick else PRESERVE))
    return rows + relearned(lm, settings, quick)


@dataclass(frozen=True)
class Asked:
    """Prompts of tasks, and how the model that was not tuned does on them."""

    bound: tuple[BoundTask, ...]
    before: dict[str, Measurement]

    @classmethod
    def of(cls, lm: LanguageModel, names: Sequence[str], split: Split, n: int) -> Asked:
        """`n` prompts of each task, or as many as there are; of the training split, none that is tuned on."""
        biases = {name for each in BIASES.values() for name in each}
        skip = {name: TUNED if split == "train" and name in biases else 0 for name in names}
        drawn = [bind(name, n + skip[name], 1, split, 0, lm.text.tokenizer) for name in names]
        bound = tuple(after(each, skip[each.name]) for each in drawn)
        return cls(bound, {each.name: measure_task(lm, each) for each in bound})

    def now(self, lm: LanguageModel) -> dict[str, Measurement]:
        return {each.name: measure_task(lm, each) for each in self.bound}

    def lost(self, now: dict[str, Measurement], but: Sequence[str]) -> dict[str, float]:
        """Points that each task lost, without those that are tuned."""
        return {name: points_lost(self.before[name], each) for name, each in now.items() if name not in but}


def after(bound: BoundTask, skip: int) -> BoundTask:
    """A task without its first prompts."""
    names = ("clean", "corrupted", "answers", "foils", "texts", "prompts")
    return replace(bound, **{name: getattr(bound, name)[skip:] for name in names}) if skip else bound


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


def fixed(
    lm: LanguageModel, bias: str, kind: str, trials: dict[Split, Asked], settings: TuneSettings, weights: Sequence[float]
) -> dict[str, Any]:
    """Tune the located objects, and random ones; measure the bias and every task."""
    names = BIASES[bias]
    tasks = [bind(name, TUNED, 1, "train", 0, lm.text.tokenizer) for name in names]
    loss, neutral = objective(lm, joined(tasks), "share"), documents(lm, 400, "train")
    ranking = located(lm, tasks[0][:40], kind)
    problem = Problem(lm, loss, neutral, settings, ranking, FRACTION, progress=False)
    method = "pinpoint" if kind == "heads" else "masked"
    row: dict[str, Any] = {"part": "bias", "bias": bias, "objects": kind, "tried": []}
    made, seconds = {}, {}
    for weight in weights:
        started = time.monotonic()
        made[weight] = tune(replace(problem, settings=replace(settings, preserve=weight)), method)
        seconds[weight] = time.monotonic() - started
        with made[weight].on(lm):
            now = trials["train"].now(lm)
        away = max(abs(now[name].value - 0.5) for name in names)
        lost = trials["train"].lost(now, names)
        row["tried"].append(
            {"preserve": weight, "away": away, "worst": max(lost.values()), "task": max(lost, key=lost.__getitem__)}
        )
    near = [each for each in row["tried"] if each["away"] <= NEAR] or [min(row["tried"], key=lambda each: float(each["away"]))]
    weight = min(near, key=lambda each: float(each["worst"]))["preserve"]
    found, held = made[weight], documents(lm, 100, "heldout")
    row |= {"preserve": weight, "count": found.count, "share": found.share, "kl": preservation(lm, found, held)}
    with found.on(lm):
        now = trials["heldout"].now(lm)
    before, lost = trials["heldout"].before, trials["heldout"].lost(now, names)
    row["targets"] = {name: (before[name].value, now[name].value) for name in names}
    worst = max(lost, key=lost.__getitem__)
    row |= {"worst_task": worst, "points_lost": lost[worst], "over_2_points": {n: v for n, v in lost.items() if v > 2}}
    row["asked"] = {name: before[name].n for name in (worst, *row["over_2_points"])}
    order = list(ranking.refs)
    Random(0).shuffle(order)
    scores = tuple(float(len(order) - n) for n in range(len(order)))
    control = replace(problem, objects=Ranking(tuple(order), scores), settings=replace(settings, preserve=weight))
    random = tune(control, "masked")
    with random.on(lm):
        row["random"] = {name: strength(lm, name) for name in names}
    return row | {"random_kl": preservation(lm, random, held), "tuning_seconds": seconds[weight]}


def strength(lm: LanguageModel, name: str, n: int = REPORT) -> float:
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
