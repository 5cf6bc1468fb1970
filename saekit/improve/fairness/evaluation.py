"""Bias in evaluation: answers that depend on the position of an option."""

from __future__ import annotations

from typing import Any

import torch

from saekit.evaluate.changed import Change
from saekit.improve.objects import FACTORS, best_scaling
from saekit.improve.report import Report
from saekit.improve.target import Target, preference
from saekit.improve.trial import Trial
from saekit.names.site import Site
from saekit.steer import intervene
from saekit.steer.target import Vector
from saekit.tasks import Task

_PARITY = 0.5


def _preferred(task: Task) -> Target:
    return preference(task, "answers with the preferred letter", _PARITY)


def attention(trial: Trial) -> Report:
    """Scale the heads that the preference of a letter depends on (re-weighting of attention)."""
    ranking = trial.rank("ablation", trial.fit("prompts"), spaces=["heads"])
    found = best_scaling(trial, ranking, _preferred(trial.fit("prompts")), share=0.15)
    return trial.report(
        _preferred(trial.held_out("prompts")),
        found.change,
        located=ranking,
        controls={"random_heads": found.random(trial), "prompting": Change(prompt="Every letter is equally likely. ")},
        changed={"what": found.what},
        aimed=["position_bias"],
        figures=found.tried,
    )


def direction(trial: Trial) -> Report:
    """Scale the direction in which the letters differ, the unembedding of one less that of the other (Yu et al. 2024)."""
    lm, task = trial.lm, trial.fit("prompts")
    answer, foil = int(task.answer_B[0]), int(task.foil_B[0])
    difference_D = (lm.W_U[:, answer] - lm.W_U[:, foil]).detach().float().cpu()
    random_D = torch.randn(difference_D.shape, generator=torch.Generator().manual_seed(trial.seed))
    on_fit = _preferred(task)
    before = float(trial.measure(on_fit).mean())
    tried: list[dict[str, Any]] = []
    for layer in range(lm.n_layers)[-1:] if trial.quick else range(lm.n_layers):
        for factor in FACTORS[:2] if trial.quick else (-2.0, -1.0, -0.5, *FACTORS):
            value = float(trial.measure(on_fit, _scaled(difference_D, layer, factor)).mean())
            tried.append({"layer": layer, "factor": factor, "value": value, "gain": on_fit.gain(before, value)})
    best = max(tried, key=lambda row: row["gain"])
    layer, factor = best["layer"], best["factor"]
    return trial.report(
        _preferred(trial.held_out("prompts")),
        _scaled(difference_D, layer, factor),
        controls={
            "random_direction": _scaled(random_D, layer, factor),
            "prompting": Change(prompt="Every letter is equally likely. "),
        },
        changed={"what": f"the direction of the letters scaled by {factor:g} at resid_post.{layer}"},
        aimed=["position_bias"],
        figures=tried,
    )


def _scaled(direction_D: torch.Tensor, layer: int, factor: float) -> Change:
    vector = Vector(Site("resid_post", layer), direction_D / direction_D.norm())
    return Change((intervene("scale", vector, f"{factor:g}raw", positions="all"),))
