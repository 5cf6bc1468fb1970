"""Unlearning by a guardrail: a change of activations that acts only where the forgotten topic is present."""

from __future__ import annotations

from typing import Any

import torch

from saekit.evaluate.changed import Change
from saekit.improve.probing import last_tokens
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, LOWER, batches, right_answers
from saekit.improve.trial import Trial
from saekit.improve.tuning import Under, tuned
from saekit.names.site import Site
from saekit.steer import Condition, Intervention, Strength, Vector, intervene
from saekit.steer.optimise import objective
from saekit.tasks import Task

_SHARES = (0.01, 0.02, 0.05, 0.1)
"""Shares of the neurons that are scaled."""
_FACTORS = (0.0, -3.0)
"""Factors that are tried: 0 takes the answer away, a negative one writes against it. Other prompts are not touched."""
_ATTACK = 20
"""Steps of the fine-tuning that tries to bring the topic back."""


def guardrail(trial: Trial) -> Report:
    """Take back, by a factor, the neurons that the answers of the topic depend on, where the prompt is about the topic.

    A direction says so: the difference of means between prompts of the topic and others, with a threshold midway (Muhamed
    et al. 2025, dynamic guardrails). An attacker then fine-tunes the weights on the questions for fitting.
    """
    lm, forget, retain = trial.lm, trial.fit("forget"), trial.fit("retain")
    condition, site = _condition(trial, forget, retain)
    later = list(range((site.layer or 0) + 1, lm.n_layers))  # the condition is read before
    ranking = trial.rank("attribution_patching", forget, spaces=["neurons"], layers=later)
    tried: list[dict[str, Any]] = []
    for share in _SHARES[-1:] if trial.quick else _SHARES:
        for factor in _FACTORS[-1:] if trial.quick else _FACTORS:
            k = int(share * len(ranking))
            change = Change((_scaled(list(ranking.top(k, by="highest")), factor).where(condition),))
            known = {"forgotten": _right(trial, forget, change), "retained": _right(trial, retain, change)}
            tried.append({"neurons": k, "factor": factor, **known})
    best = min(tried, key=lambda row: float(row["forgotten"]) - float(row["retained"]))
    k, factor = int(best["neurons"]), float(best["factor"])
    everywhere = Change((_scaled(list(ranking.top(k, by="highest")), factor),))
    change = Change((_scaled(list(ranking.top(k, by="highest")), factor).where(condition),))
    drawn = Change((_scaled(trial.random.sample(list(ranking), k), factor).where(condition),))
    unlearned = tuned(trial, objective(lm, _swapped(forget), "answers"), "full", steps=40, lr=3e-4)
    arms = {"before": Change(), "after": change, "everywhere": everywhere, "full fine-tuning": unlearned.change}
    out = {"forgotten": trial.held_out("forget"), "retained": trial.held_out("retain")}
    rows = [{"model": name, **{key: _right(trial, task, each) for key, task in out.items()}} for name, each in arms.items()]
    for name in ("after", "full fine-tuning"):
        relearned = _attacked(trial, forget, arms[name])
        rows.append({"model": f"{name}, after the attack", **{key: _right(trial, task, relearned) for key, task in out.items()}})
    return trial.report(
        right_answers(out["forgotten"], "questions of the forgotten topic that are answered", LOWER),
        change,
        located=ranking,
        controls={"random_neurons": drawn, "everywhere": everywhere, "full_fine_tuning": unlearned.change},
        changed={"what": f"{k} of {len(ranking):,} neurons scaled by {factor:g} where the prompt is about the topic"},
        aimed=[forget.name, "facts_heldout_phrasings"],
        figures=[*rows, *tried],
    )


def _condition(trial: Trial, forget: Task, retain: Task) -> tuple[Condition, Site]:
    """The topic is present: the projection on the difference of means, at the layer that tells the two kinds of prompts best."""
    found = []
    for layer in range(1 if trial.quick else trial.lm.n_layers - 1):
        site = f"resid_post.{layer}"
        own, other = (torch.from_numpy(last_tokens(trial.lm, task.clean, [site])[site]) for task in (forget, retain))
        direction = own.mean(0) - other.mean(0)
        direction = direction / direction.norm()
        a, b = (_peaks(trial, task, site, direction) for task in (forget, retain))
        threshold = float((a.mean() + b.mean()) / 2)
        told = float((a > threshold).float().mean() + (b <= threshold).float().mean())
        found.append((told, layer, direction, threshold))
    _, layer, direction, threshold = max(found, key=lambda each: each[:2])
    place = Site("resid_post", layer)
    return Condition(Vector(place, direction), ">", Strength(threshold), "prompt", threshold), place


@torch.no_grad()
def _peaks(trial: Trial, task: Task, site: str, direction_D: torch.Tensor) -> torch.Tensor:
    """(B,) the largest projection on a direction among the ordinary tokens of each prompt."""
    lm = trial.lm
    found_B = torch.zeros(len(task))
    for some, tokens_BT, mask_BT in batches(lm, task.clean, 32):
        acts_BTD = lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site].float()
        value_BT = (acts_BTD @ direction_D.to(acts_BTD)).masked_fill(~lm.ordinary(tokens_BT, mask_BT), float("-inf"))
        found_B[some] = value_BT.amax(1).cpu()
    return found_B


def _scaled(objects: list[Any], factor: float) -> Intervention:
    return intervene("scale", objects, f"{factor:g}raw", positions="all")


def _right(trial: Trial, task: Task, change: Change) -> float:
    return float(trial.measure(right_answers(task, "", HIGHER), change).mean())


def _swapped(task: Task) -> Task:
    """The prompts with the foils as answers."""
    return Task(task.name, task.clean, task.corrupted, task.foils, task.answers)


def _attacked(trial: Trial, task: Task, change: Change) -> Change:
    """The change, and a fine-tuning on the right answers while it is on."""
    with change.on(trial.lm) as changed:
        loss = Under(objective(trial.lm, task, "answers"), changed.interventions)
        return change + tuned(trial, loss, "full", steps=_ATTACK, lr=1e-4, preserve=0.0).change
