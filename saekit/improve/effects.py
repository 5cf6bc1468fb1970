"""Side effects of any change: on neutral text, and on the tasks of the laboratory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from saekit.builtin import is_lab
from saekit.improve.changed import Change
from saekit.improve.target import batches

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

MOST_LOST = 0.02
"""Change of an accuracy that counts as a loss."""


@torch.no_grad()
def on_neutral_text(
    lm: LanguageModel,
    change: Change,
    rows: Sequence[Sequence[int]],
    before: Change | None = None,
    *,
    batch_size: int = 8,
) -> dict[str, float]:
    """Mean KL(before || changed) and rise of the cross-entropy of the next token, in nats a token, at ordinary tokens.

    Args:
        before: the state to compare with; None: the unchanged model.
        rows: neutral texts as token ids. The prompt of the change is not put before them.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for _, tokens_BT, mask_BT in batches(lm, rows, batch_size):
        counted_BT = lm.ordinary(tokens_BT, mask_BT)[:, :-1] & mask_BT[:, 1:].bool()
        with (before or Change()).on(lm) as started:
            base = started.run(tokens_BT, attention_mask=mask_BT).logits[:, :-1][counted_BT].float().log_softmax(-1)
        with change.on(lm) as changed:
            new = changed.run(tokens_BT, attention_mask=mask_BT).logits[:, :-1][counted_BT].float().log_softmax(-1)
        next_N1 = tokens_BT[:, 1:][counted_BT][:, None]
        kl_N = (base.exp() * (base - new)).sum(-1).clamp_min(0)
        delta_N = (base.gather(1, next_N1) - new.gather(1, next_N1))[:, 0]
        sums += torch.tensor([float(kl_N.double().sum()), float(delta_N.double().sum()), len(kl_N)], dtype=torch.float64)
    tokens = max(1.0, float(sums[2]))
    return {"kl": float(sums[0]) / tokens, "cross_entropy_delta": float(sums[1]) / tokens, "tokens": int(sums[2])}


def lab_tasks() -> list[str]:
    """The tasks of the laboratory that have a goal: what its model can do."""
    from saekit import lab

    return [name for name, task in lab.TASKS.items() if not task.at_least is task.at_most is task.planted is None]


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


def has_lab_tasks(lm: LanguageModel) -> bool:
    """Whether the tasks of the laboratory say what a model can do."""
    return is_lab(lm.name)
