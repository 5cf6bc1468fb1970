"""How well a model performs the tasks of the laboratory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekit import lab
from saekit.errors import ModelNotFound
from saekit.lab.bench import BoundTask, bind
from saekit.lab.splits import Split
from saekit.progress import track

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_SAMPLES = 5
_TOLERANCE = 0.05
"""Largest difference between a measured strength and the planted one that meets the goal."""
_BATCH_TOKENS = 8192
_FACTS = {
    "architecture": "model_type",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
    "vocabulary": "vocab_size",
}


@dataclass(frozen=True)
class Measurement:
    """One task on one model.

    Attributes:
        task, genre, description, metric: as the laboratory has them.
        n: number of prompts.
        value: the metric over these prompts.
        low, high: its 95 % interval.
        goal: what the value should be; empty if there is no goal.
        met: whether the value meets the goal; None if there is no goal.
        failures: a few of the prompts that failed, with the continuations of the model.
        cases: for a strength, its mean for each case (each profession, for example): opposite errors cancel in the overall mean.
    """

    task: str
    genre: str
    description: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    goal: str
    met: bool | None
    failures: tuple[tuple[str, str], ...]
    cases: dict[str, float]


def measure(
    lm: LanguageModel,
    tasks: Sequence[str] | None = None,
    *,
    n: int = 200,
    split: Split = "heldout",
    seed: int = 0,
    progress: bool = True,
) -> list[Measurement]:
    """Measure tasks, in the order of their genres.

    Args:
        tasks: names of tasks; None takes all.
        n: number of prompts of each task; a task with fewer uses all of its prompts.

    Raises:
        ConfigError: there is no such task.
    """
    names = sorted(lab.TASKS, key=lambda name: (lab.TASKS[name].genre, name)) if tasks is None else tasks
    found = []
    with track("measuring", total=len(names), unit="tasks", enabled=progress) as bar:
        for done, name in enumerate(names):
            bar.update(done, note=name)
            found.append(measure_task(lm, bind(name, n, 1, split, seed, lm.text.tokenizer), seed=seed))
        bar.update(len(names))
    return found


def measure_task(lm: LanguageModel, bound: BoundTask, *, seed: int = 0) -> Measurement:
    """Measure one task: its accuracy from generated continuations, or its strength from next-token probabilities."""
    from scipy.stats import binomtest

    task, n = bound.task, len(bound)
    failures: list[tuple[str, str]] = []
    cases: dict[str, float] = {}
    if task.metric == "strength":
        share_B = preference(lm, bound)
        named = [prompt.case if isinstance(prompt.case, str) else None for prompt in bound.prompts]
        for case in sorted({name for name in named if name is not None}):
            cases[case] = float(share_B[[name == case for name in named]].mean())
        value = float(share_B.mean())
        margin = 1.96 * float(share_B.std()) / sqrt(n) if n > 1 else 1.0
        low, high = max(0.0, value - margin), min(1.0, value + margin)
    else:
        said = continuations(lm, bound, seed=seed)
        right = [task.check(prompt, text) for prompt, text in zip(bound.prompts, said)]
        # If a task has an upper limit, the prompts that show the behaviour are the failures.
        unwanted = task.at_most is not None
        failures = [(p.clean, text) for p, text, ok in zip(bound.prompts, said, right) if ok == unwanted][:_SAMPLES]
        value = sum(right) / n
        interval = binomtest(sum(right), n).proportion_ci(0.95, method="wilson")
        low, high = float(interval.low), float(interval.high)
    goal, met = _goal(task, value)
    return Measurement(
        task.name, task.genre, task.description, task.metric, n, value, low, high, goal, met, tuple(failures), cases
    )


def continuations(lm: LanguageModel, bound: BoundTask, *, seed: int = 0) -> list[str]:
    """Continuation of each clean prompt, sampled as the task says."""
    task = bound.task
    texts = [""] * len(bound)
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "seed": seed} if task.sample else {}
    for rows in _batches(bound):
        said = lm.generate([bound.prompts[b].clean for b in rows], max_new_tokens=task.new_tokens, **settings)
        for b, text in zip(rows, said.texts):
            texts[b] = text
    return texts


@torch.no_grad()
def preference(lm: LanguageModel, bound: BoundTask) -> torch.Tensor:
    """(B,) P(answer) / (P(answer) + P(foil)) of their first tokens after each clean prompt."""
    share_B = torch.zeros(len(bound), dtype=torch.float64)
    for rows in _batches(bound):
        run = lm.run(bound.clean_BT[rows], attention_mask=bound.mask_BT[rows], logits="last")
        assert run.logits is not None
        logits_BV = run.logits.double().cpu()
        pair_B2 = torch.stack([bound.answer_B[rows], bound.foil_B[rows]], dim=1)
        share_B[rows] = logits_BV.gather(1, pair_B2).softmax(1)[:, 0]
    return share_B


def model_facts(folder: Path) -> dict[str, Any]:
    """Sizes of the model in `folder`, and its training if there is a `training.json`. No weights are loaded.

    Raises:
        ModelNotFound: the folder holds no configuration or no weights.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        with (folder / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelNotFound(f"{folder} holds no model: {error}.", "Give a folder that scripts/train_lab.py made.") from error
    header.pop("__metadata__", None)
    facts = {name: config[key] for name, key in _FACTS.items() if key in config}  # other architectures have other keys
    facts["parameters"] = sum(prod(tensor["shape"]) for tensor in header.values())
    record = folder / "training.json"
    if record.exists():
        training = json.loads(record.read_text())
        training.pop("history", None)
        facts["training"] = training
    return facts


def _goal(task: lab.Task, value: float) -> tuple[str, bool | None]:
    if task.planted is not None:
        return f"{task.planted:.0%} ± {_TOLERANCE:.0%}", abs(value - task.planted) <= _TOLERANCE
    if task.at_least is not None:
        return f"≥ {task.at_least:.0%}", value >= task.at_least
    if task.at_most is not None:
        return f"≤ {task.at_most:.0%}", value <= task.at_most
    return "", None


def _batches(bound: BoundTask) -> Iterator[list[int]]:
    """Indices of prompts of similar length, in batches that need little memory."""
    order = sorted(range(len(bound)), key=lambda b: len(bound.clean[b]))
    longest = max(len(row) for row in bound.clean) + bound.task.new_tokens
    step = max(1, _BATCH_TOKENS // longest)
    for start in range(0, len(order), step):
        yield order[start : start + step]
