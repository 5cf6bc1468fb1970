"""Directions of safety: refusal, false refusal and truth."""

from __future__ import annotations

from typing import Any

import torch

from saekit.evaluate.changed import Change, Changed
from saekit.improve.report import Report
from saekit.improve.target import HIGHER, LOWER, batches, cross_entropy, preference
from saekit.improve.trial import Trial
from saekit.improve.tuning import tuned
from saekit.names.site import Site
from saekit.steer import intervene
from saekit.steer.optimise import objective
from saekit.steer.target import Vector
from saekit.tasks import Contrast, Task

_COMPLIES = 0.2
"""Share of harmless requests with which the model that refuses too much complies."""


def refusal(trial: Trial) -> Report:
    """Erase the difference of the last tokens of harmful and harmless prompts everywhere (Arditi et al. 2024, eq. 2 and 4)."""
    positive, negative = (
        trial.lm.text.ids(list(side)) for side in (trial.fit("requests").positive, trial.fit("requests").negative)
    )
    on_fit = preference(trial.fit("prompts"), "refusals of harmful requests", LOWER)
    options = []
    for layer in range(1, trial.lm.n_layers - 1)[:1] if trial.quick else range(1, trial.lm.n_layers - 1):
        direction = _last(trial, positive, layer).mean(0) - _last(trial, negative, layer).mean(0)
        change = _erased(trial, direction)
        options.append((float(trial.measure(on_fit, change).mean()), layer, direction, change))
    _, layer, direction, change = min(options, key=lambda option: option[0])
    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(trial.seed))
    added = Change((intervene("add", Vector(Site("resid_post", layer), direction), "1raw", positions="all"),))
    harmless = _swapped(trial.held_out("prompts"))
    refused = preference(harmless, "refusals of harmless requests")
    figures = [{"direction of layer": option[1], "refusals on the data for fitting": option[0]} for option in options] + [
        {"harmless requests": "refused before", "value": float(trial.measure(refused).mean())},
        {"harmless requests": "refused with the direction added", "value": float(trial.measure(refused, added).mean())},
    ]
    return trial.report(
        preference(trial.held_out("prompts"), "refusals of harmful requests", LOWER),
        change,
        controls={"random_direction": _erased(trial, random), "prompting": Change(prompt="System: Always help the user.\n")},
        changed={"what": f"the direction of layer {layer} erased after every block"},
        aimed=["refusal_of_harmful"],
        figures=figures,
    )


def false_refusal(trial: Trial) -> Report:
    """Make a model that refuses too much, then erase the part of false refusal that is orthogonal to true refusal."""
    lm, borderline, harmful = trial.lm, trial.fit("prompts"), trial.fit("harmful")
    # The model learns to refuse harmless requests in most cases.
    over = tuned(trial, objective(lm, borderline, "share", {"share": _COMPLIES}), "full", lr=1e-4, steps=60)
    with over.change.on(lm):
        layer = lm.n_layers // 2
        harmless = _last(trial, harmful.corrupted, layer).mean(0)
        true = _last(trial, harmful.clean, layer).mean(0) - harmless
        false = _last(trial, borderline.clean, layer).mean(0) - harmless
        direction = false - (false @ true) / (true @ true) * true
        change = _erased(trial, direction)
        random = _erased(trial, torch.randn(direction.shape, generator=torch.Generator().manual_seed(trial.seed)))
    kept = preference(trial.held_out("harmful"), "refusals of harmful requests")
    figures = [
        {"refusals of harmful requests": name, "value": float(trial.measure(kept, each).mean())}
        for name, each in {"refusing too much": over.change, "erased": over.change + change}.items()
    ]
    return trial.report(
        preference(trial.held_out("prompts"), "compliance with harmless requests", HIGHER),
        over.change + change,
        before=over.change,
        controls={"random_direction": over.change + random, "whole_direction": over.change + _erased(trial, false)},
        changed={"what": f"the direction of false refusal at layer {layer} erased after every block"},
        aimed=["refusal_of_harmful", "false_refusal"],
        figures=figures,
    )


def truthfulness(trial: Trial) -> Report:
    """Tell the true statement of a pair from the false one by its projection on the difference of means.

    The layer is the one at which most pairs for fitting are told apart, each by a direction of the other half of them.
    """
    fit, held_out = trial.fit("statements"), trial.held_out("statements")
    middle = len(fit) // 2
    rows: list[dict[str, Any]] = []
    for layer in range(trial.lm.n_layers):
        halves = fit[:middle], fit[middle:]
        told = [_told(trial, _difference(trial, one, layer), other, layer) for one, other in (halves, halves[::-1])]
        rows.append({"layer": layer, "pairs told apart, cross-validated": float(torch.cat(told).mean())})
    layer = int(max(rows, key=lambda row: float(row["pairs told apart, cross-validated"]))["layer"])
    direction = _difference(trial, fit, layer)
    random = torch.randn(direction.shape, generator=torch.Generator().manual_seed(trial.seed))
    return trial.readout(
        "pairs whose true statement lies further along the direction",
        torch.full((len(held_out),), 0.5, dtype=torch.float64),
        _told(trial, direction, held_out, layer),
        {"random_direction": _told(trial, random, held_out, layer), "likelihood": _likelier(trial, held_out)},
        what=f"the difference of means of true and false statements at layer {layer} (nothing is changed); before: chance",
        figures=rows,
    )


def _difference(trial: Trial, pairs: Contrast, layer: int) -> torch.Tensor:
    positive, negative = (_last(trial, trial.lm.text.ids(list(side)), layer) for side in (pairs.positive, pairs.negative))
    return positive.mean(0) - negative.mean(0)


def _told(trial: Trial, direction_D: torch.Tensor, pairs: Contrast, layer: int) -> torch.Tensor:
    """1 for each pair whose positive text has the larger projection, else 0."""
    positive, negative = (_last(trial, trial.lm.text.ids(list(side)), layer) for side in (pairs.positive, pairs.negative))
    return ((positive - negative) @ direction_D > 0).double()


def _likelier(trial: Trial, pairs: Contrast) -> torch.Tensor:
    """1 for each pair whose positive text has the lower cross-entropy, else 0."""
    positive, negative = (cross_entropy(list(side), "").score(Changed(trial.lm)) for side in (pairs.positive, pairs.negative))
    return (positive < negative).double()


def _erased(trial: Trial, direction_D: torch.Tensor) -> Change:
    """The direction projected out of the embedding and of the residual stream after every block."""
    sites = ["embed", *(f"resid_post.{layer}" for layer in range(trial.lm.n_layers))]
    unit = direction_D / direction_D.norm()
    return Change((intervene("ablate", [Vector(Site.parse(site), unit) for site in sites]),))


def _swapped(task: Task) -> Task:
    """The corrupted prompts with the answers of the clean ones."""
    return Task(f"{task.name} corrupted", task.corrupted, task.clean, task.answers, task.foils)


@torch.no_grad()
def _last(trial: Trial, rows: Any, layer: int) -> torch.Tensor:
    """(B, d_model) residual stream after a block at the last token of each row."""
    site = f"resid_post.{layer}"
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for some, tokens_BT, mask_BT in batches(trial.lm, rows, 32):
        acts_BTD = trial.lm.run(tokens_BT, attention_mask=mask_BT, read=[site], logits=None)[site].float().cpu()
        for i, (b, last) in enumerate(zip(some, (mask_BT.sum(1) - 1).tolist())):
            found[b] = acts_BTD[i, last]
    return torch.stack(found)
