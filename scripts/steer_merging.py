"""Merging two specialists of the laboratory model: what each method keeps of both skills and of the others.

Two skills that the model lacks are trained briefly, each from the same base: a bare answer from a table (`retrieval_bare`), and
the letter of the right option (`multiple_choice`). Half of each batch is text of the corpus of the laboratory, as in practice, so
that the specialists keep what the base can do. A method is judged by the share of the accuracy of each specialist that it
keeps, and by the share of its gain over the base, on prompts whose cases and phrasings were not trained on.
"""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from saekit import lab
from saekit.evaluate.lab import measure
from saekit.lm import LanguageModel
from saekit.steer.merge import MergeSettings, merge_models

SKILLS = ("retrieval_bare", "multiple_choice")
OTHERS = ("addition", "facts_heldout_phrasings", "indirect_object", "induction", "retrieval_asked", "reasoning_answer")
STEPS, BATCH, LR = 250, 16, 6e-4
IGNORED = -100
METHODS: tuple[tuple[str, dict[str, Any], tuple[float, float]], ...] = (
    ("linear", {}, (1, 1)),
    ("slerp", {}, (1, 1)),
    ("arithmetic", {}, (1, 1)),
    ("arithmetic", {"scale": 0.7}, (1, 1)),
    ("ties", {}, (1, 1)),
    ("ties", {"density": 0.5}, (1, 1)),
    ("ties", {"density": 0.5, "scale": 1.5}, (1, 1)),
    ("dare", {"drop": 0.2}, (1, 1)),
    ("dare", {"drop": 0.5}, (1, 1)),
    ("dare", {"drop": 0.9}, (1, 1)),
    ("dare_ties", {"drop": 0.2}, (1, 1)),
    ("dare_ties", {"drop": 0.5}, (1, 1)),
    ("sens", {}, (1, 1)),
    ("sens", {"scale": 2}, (1, 1)),
    ("aim", {}, (1, 1)),
    ("acm", {"scale": 2}, (1, 1)),
    ("arithmetic", {}, (0.5, 1)),
    ("arithmetic", {}, (0.4, 1)),
    ("ties", {"density": 0.5, "scale": 1.2}, (0.5, 1)),
)


def section(quick: bool) -> list[dict[str, Any]]:
    """One row for the base, each specialist and each method."""
    prompts, steps = (40, 10) if quick else (200, STEPS)
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / skill for skill in SKILLS]
        rows = [scored("base", LanguageModel.load("lab"), prompts)]
        for skill, folder in zip(SKILLS, folders, strict=True):
            started = time.monotonic()
            specialise(skill, folder, steps)
            row = scored(f"specialist: {skill}", LanguageModel.load(folder, bos="yes"), prompts)
            rows.append({**row, "seconds": time.monotonic() - started})
        texts = [calibration(skill) for skill in SKILLS]
        for settings in METHODS:
            rows.append(merged_row(settings, (folders, texts), Path(place), prompts))
    return with_shares(rows)


def with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the shares of the accuracy and of the gain of each specialist that each merged model keeps."""
    base, *experts = rows[:3]
    for row in rows[3:]:
        row["accuracy kept"] = [row[skill] / max(expert[skill], 1e-9) for skill, expert in zip(SKILLS, experts, strict=True)]
        row["gain kept"] = [
            (row[skill] - base[skill]) / max(expert[skill] - base[skill], 1e-9)
            for skill, expert in zip(SKILLS, experts, strict=True)
        ]
    return rows


def merged_row(
    settings: tuple[str, dict[str, Any], tuple[float, float]],
    given: tuple[list[Path], list[list[list[int]]]],
    place: Path,
    prompts: int,
) -> dict[str, Any]:
    """Merge, load and measure."""
    (method, options, weights), (folders, texts) = settings, given
    needs = {"sens": texts, "aim": [texts[0] + texts[1]], "acm": [texts[0] + texts[1]]}
    shown = [f"{name}={value:g}" for name, value in options.items()]
    named = " ".join([method, *shown, *(["weights={:g},{:g}".format(*weights)] if weights != (1, 1) else [])])
    out = place / named.replace(" ", "-")
    started = time.monotonic()
    report = merge_models(folders, out, base="lab", settings=MergeSettings(method, weights, options, needs.get(method, ())))
    seconds = time.monotonic() - started
    row = scored(named, LanguageModel.load(out, bos="yes"), prompts)
    return {**row, "conflicts": report.conflicts, "norm": report.norm, "seconds": seconds}


def scored(name: str, lm: LanguageModel, prompts: int) -> dict[str, Any]:
    """Accuracy in both skills, and the mean of other tasks."""
    found = {each.task: each.value for each in measure(lm, SKILLS, n=prompts, progress=False)}
    found |= {each.task: each.value for each in measure(lm, OTHERS, n=prompts // 4, progress=False)}
    others = sum(found[task] for task in OTHERS) / len(OTHERS)
    return {"model": name, **{skill: found[skill] for skill in SKILLS}, "others": others}


def specialise(skill: str, folder: Path, steps: int, seed: int = 0) -> None:
    """Fine-tune the laboratory model on a task's training prompts and on corpus text, and write a model folder."""
    lm = LanguageModel.load("lab", dtype="float32", device="cpu")
    model = lm.model
    model.requires_grad_(True)
    rows = answered(lm, skill, BATCH // 2 * steps, seed)
    documents = lab.documents(seed=seed + 1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for step in range(steps):
        texts = [each.text for each in islice(documents, BATCH // 2)]
        batch = [rows[(step * (BATCH // 2) + i) % len(rows)] for i in range(BATCH // 2)]
        batch += [(ids[:64], ids[:64]) for ids in lm.text.ids(texts)]
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 20, 2 * (steps - step) / steps)
        ids, targets = padded(batch)
        loss = model(input_ids=ids, labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    model.save_pretrained(folder)
    lm.text.tokenizer.save_pretrained(folder)


def answered(lm: LanguageModel, skill: str, n: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts with answers, and targets that ignore the prompt."""
    bound = lab.task(skill, min(n, 6000), "train", seed)
    rows = [
        (list(prompt + answer), [IGNORED] * len(prompt) + list(answer))
        for prompt, answer in zip(bound.clean, bound.answers, strict=True)
    ]
    Random(seed).shuffle(rows)
    return rows


def calibration(skill: str, n: int = 32) -> list[list[int]]:
    """Prompts with answers of the training split that the fine-tuning did not see."""
    bound = lab.task(skill, n, "train", seed=77)
    return [list(prompt + answer) for prompt, answer in zip(bound.clean, bound.answers, strict=True)]


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Token ids and targets (B, T), padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    targets = torch.tensor([row + [IGNORED] * (longest - len(row)) for _, row in rows])
    return ids, targets


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'model':44s} {SKILLS[0]:>15s} {SKILLS[1]:>16s} {'others':>7s}   accuracy kept   gain kept   sign conflicts")
    for row in rows:
        kept = ["{:5.0%} {:5.0%}".format(*row[key]) if key in row else "" for key in ("accuracy kept", "gain kept")]
        conflicts = f"{row['conflicts']:.0%}" if "conflicts" in row else ""
        scores = f"{row[SKILLS[0]]:15.0%} {row[SKILLS[1]]:16.0%} {row['others']:7.0%}"
        print(f"{row['model']:44s} {scores}   {kept[0]:13s}   {kept[1]:11s} {conflicts}")
