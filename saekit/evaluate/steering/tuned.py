"""What tuning did: the target before and after on held-out data, and KL to the unedited model on neutral text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from saekit.steer.optimise.objectives import Data, Rows, rows_of_texts
from saekit.tasks import Contrast, Labelled, Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel
    from saekit.steer.optimise import Tuned

_BATCH = 16


def target(lm: LanguageModel, data: Data, tuned: Tuned | None = None) -> dict[str, float]:
    """How the model, or the tuned one, does on data, by measure.

    - of a task: `share`, the mean of P(answer) / (P(answer) + P(foil)) of first tokens; `efficacy`, the share of prompts where
      P(answer) > P(foil); `cross_entropy`, -log P(answer), nats a prompt;
    - of texts: `cross_entropy`, nats a token; of a contrast, that of the positive and, as `negative`, of the negative texts.
    """
    with ExitStack() as stack:
        edits = () if tuned is None else stack.enter_context(tuned.on(lm))
        if isinstance(data, Task):
            return _task(lm, data, edits)
        sides: dict[str, Any] = {"cross_entropy": data}
        if isinstance(data, Contrast):
            sides = {"cross_entropy": data.positive, "negative": data.negative}
        elif isinstance(data, Labelled):
            sides = {"cross_entropy": data.texts}
        return {name: _per_token(rows_of_texts(lm, texts), edits) for name, texts in sides.items()}


def _task(lm: LanguageModel, task: Task, edits: Sequence[Any]) -> dict[str, float]:
    first = task.first_tokens()
    answers = Rows(lm, [c + a for c, a in zip(task.clean, task.answers)], [len(c) for c in task.clean])
    firsts = Rows(lm, [c + a for c, a in zip(first.clean, first.answers)], [len(c) for c in first.clean])
    pair_B2 = torch.stack([first.answer_B, first.foil_B], 1)
    logp_B2, total = [], 0.0
    for index in _batches(len(task)):
        logp_BV = firsts.predictions(index, edits, grad=False)[0]
        logp_B2.append(logp_BV.cpu().gather(1, pair_B2[index]))
        total -= float(answers.log_probabilities(index, edits, grad=False)[0].sum())
    shares_B = torch.cat(logp_B2).softmax(1)[:, 0]
    return {
        "share": float(shares_B.mean()),
        "efficacy": float((shares_B > 0.5).float().mean()),
        "cross_entropy": total / len(task),
    }


def _per_token(rows: Rows, edits: Sequence[Any]) -> float:
    total, count = 0.0, 0.0
    for index in _batches(len(rows.rows)):
        logp_B, count_B = rows.log_probabilities(index, edits, grad=False)
        total, count = total - float(logp_B.sum()), count + float(count_B.sum())
    return total / count


def preservation(lm: LanguageModel, tuned: Tuned, neutral: Sequence[str] | Sequence[Sequence[int]]) -> float:
    """KL(unedited || tuned) on neutral texts, nats a token.

    Raises:
        CorpusError: there is no text, or one has fewer than two tokens.
    """
    rows = rows_of_texts(lm, neutral)
    total, count = 0.0, 0
    for index in _batches(len(rows.rows)):
        before_NV = rows.predictions(index, grad=False)[0]
        with tuned.on(lm) as edits:
            after_NV = rows.predictions(index, edits, grad=False)[0]
        total, count = total + float((before_NV.exp() * (before_NV - after_NV)).sum()), count + len(before_NV)
    return total / count


def _batches(n: int) -> list[list[int]]:
    return [list(range(start, min(start + _BATCH, n))) for start in range(0, n, _BATCH)]
