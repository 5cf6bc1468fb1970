"""What a change costs in capabilities: the tasks of the laboratory, and tasks of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekit.builtin import is_lab
from saekit.evaluate.changed import Change, Changed
from saekit.locate.scored import bootstrap

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.tasks import Task

MOST_LOST = 0.02
"""Change of an accuracy that counts as a loss."""


def has_lab_tasks(lm: LanguageModel) -> bool:
    """Whether the tasks of the laboratory say what a model can do."""
    return is_lab(lm.name)


def lab_tasks() -> list[str]:
    """The tasks of the laboratory that have a goal: what its model can do."""
    from saekit import lab

    return [name for name, task in lab.TASKS.items() if {task.at_least, task.at_most, task.planted} != {None}]


def measured_tasks(lm: LanguageModel, change: Change, names: Sequence[str], n: int, seed: int) -> dict[str, float]:
    """The value of each task of the laboratory with a change on."""
    from saekit.evaluate.lab import measure

    with change.on(lm) as changed:
        found = measure(changed, names, n=n, seed=seed, progress=False)  # type: ignore[arg-type]
    return {each.task: each.value for each in found}


def lost_tasks(before: Mapping[str, float], after: Mapping[str, float], aimed: Sequence[str] = ()) -> dict[str, Any]:
    """Tasks whose value moved the wrong way by more than 2 points.

    Args:
        aimed: tasks that the change is meant to change; they are left out.
    """
    from saekit import lab

    lost = []
    counted = [name for name in before if name not in aimed]
    for name in counted:
        task = lab.TASKS[name]
        change = after[name] - before[name]
        worse = -change
        if task.at_most is not None:
            worse = change
        elif task.planted is not None:
            worse = abs(after[name] - task.planted) - abs(before[name] - task.planted)
        if worse > MOST_LOST:
            lost.append({"task": name, "before": before[name], "after": after[name], "change": change})
    return {"of": len(counted), "lost": sorted(lost, key=lambda each: -abs(float(each["change"]))), "aimed": list(aimed)}


@torch.no_grad()
def preferred(changed: Changed, task: Task, batch_size: int = 32) -> Tensor:
    """(B,) float64: 1 where the first token of the answer is likelier after the clean prompt than that of the foil, else 0."""
    rows = changed.prompted_rows(task.clean)
    right_B = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda b: len(rows[b]))
    pair_B2 = torch.stack([task.answer_B, task.foil_B], 1)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        tokens_BT, mask_BT = changed.text.pad([rows[b] for b in some], "right")
        run = changed.run(tokens_BT.to(changed.lm.device), attention_mask=mask_BT.to(changed.lm.device), logits="last")
        answer_B, foil_B = run.logits.cpu().gather(1, pair_B2[some]).T
        right_B[some] = (answer_B > foil_B).double()
    return right_B


def probed(lm: LanguageModel, change: Change, probes: Mapping[str, Task]) -> dict[str, Any]:
    """The share of each task's prompts after which the answer is likelier than the foil, without and with a change.

    The interval (95 %) is of the difference, by a bootstrap over the prompts.
    """
    found = {}
    for name, task in probes.items():
        values = []
        for each in (Change(), change):
            with each.on(lm) as changed:
                values.append(preferred(changed, task))
        low, high = bootstrap((values[1] - values[0])[None])
        found[name] = {
            "value": float(values[1].mean()),
            "unsteered": float(values[0].mean()),
            "change": float((values[1] - values[0]).mean()),
            "interval": [float(low[0]), float(high[0])],
            "n": len(values[0]),
            "relative_to": "the unsteered model",
        }
    return found


def lab_probes(lm: LanguageModel, change: Change, names: Sequence[str], n: int, seed: int) -> dict[str, Any]:
    """Tasks of the laboratory without and with a change: the rows of a card."""
    before, after = (measured_tasks(lm, each, names, n, seed) for each in (Change(), change))
    lost = {each["task"] for each in lost_tasks(before, after)["lost"]}
    return {
        f"lab:{name}": {
            "value": after[name],
            "unsteered": before[name],
            "change": after[name] - before[name],
            "lost": name in lost,
            "n": n,
            "relative_to": "the unsteered model",
        }
        for name in names
    }
