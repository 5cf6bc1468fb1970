"""What a recipe is to improve: a number for each held-out example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as cross_entropy_of

from saekit.evaluate.changed import Changed
from saekit.lab.bench import BoundTask
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Target:
    """A number for each example of a model with a change on.

    Attributes:
        name: what is measured, for people: "refusals of harmful requests".
        score: (changed model) -> (B,) float64, one number for each example. The number of examples is always the same.
        wanted: "higher", "lower", or the value that the mean is to approach.
        unit: "share", "nats" or another.
    """

    name: str
    score: Callable[[Changed], Tensor]
    wanted: str | float = HIGHER
    unit: str = "share"

    def gain(self, before: float, after: float) -> float:
        """By how much `after` is better than `before`."""
        if isinstance(self.wanted, str):
            return after - before if self.wanted == HIGHER else before - after
        return abs(before - self.wanted) - abs(after - self.wanted)


def right_answers(task: Task, name: str, wanted: str | float = HIGHER, *, seed: int = 0) -> Target:
    """The share of prompts whose continuation is right: by the check of a task of the laboratory; of other tasks, a continuation
    that begins with the answer."""

    def score(changed: Changed) -> Tensor:
        if isinstance(task, BoundTask):
            from saekit.evaluate.lab import continuations

            said: list[str] = continuations(changed, task, seed=seed)  # type: ignore[arg-type]
            return torch.tensor([task.task.check(prompt, text) for prompt, text in zip(task.prompts, said)]).double()
        texts = changed.prompted([each.clean for each in task.texts])
        longest = max(task.longest_answer, 1) + 2
        made = changed.lm.generate(texts, interventions=list(changed.interventions), max_new_tokens=longest, do_sample=False)
        right = [text.strip().startswith(each.answer.strip()) for text, each in zip(made.texts, task.texts)]
        return torch.tensor(right).double()

    return Target(name, score, wanted)


def preference(task: Task, name: str, wanted: str | float = HIGHER, *, batch_size: int = 32) -> Target:
    """P(answer) / (P(answer) + P(foil)) of the first tokens after each clean prompt."""

    @torch.no_grad()
    def score(changed: Changed) -> Tensor:
        rows = changed.prompted_rows(task.clean)
        share_B = torch.zeros(len(rows), dtype=torch.float64)
        pair_B2 = torch.stack([task.answer_B, task.foil_B], 1)
        for some, tokens_BT, mask_BT in batches(changed.lm, rows, batch_size):
            logits_BTV = changed.run(tokens_BT, attention_mask=mask_BT).logits
            last_BV = logits_BTV[torch.arange(len(some)), mask_BT.sum(1) - 1].double().cpu()
            share_B[some] = last_BV.gather(1, pair_B2[some]).softmax(1)[:, 0]
        return share_B

    return Target(name, score, wanted)


def judged(
    prompts: Sequence[str],
    judge: Callable[[str], bool | float],
    name: str,
    wanted: str | float = HIGHER,
    *,
    max_new_tokens: int = 24,
    seed: int | None = None,
) -> Target:
    """What a judge says of a continuation of each prompt: greedy, or sampled with a seed."""

    def score(changed: Changed) -> Tensor:
        sampling: dict[str, Any] = {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "seed": seed}
        made = changed.generate(list(prompts), max_new_tokens=max_new_tokens, **sampling)
        return torch.tensor([float(judge(text)) for text in made.texts], dtype=torch.float64)

    return Target(name, score, wanted)


def cross_entropy(texts: Sequence[str], name: str, wanted: str | float = LOWER, *, batch_size: int = 16) -> Target:
    """Mean cross-entropy of the tokens of each text, in nats."""

    @torch.no_grad()
    def score(changed: Changed) -> Tensor:
        rows = changed.lm.text.ids(list(texts))
        found_B = torch.zeros(len(rows), dtype=torch.float64)
        for some, tokens_BT, mask_BT in batches(changed.lm, rows, batch_size):
            logits_BVT = changed.run(tokens_BT, attention_mask=mask_BT).logits[:, :-1].float().transpose(1, 2).cpu()
            loss_BT = cross_entropy_of(logits_BVT, tokens_BT[:, 1:].cpu(), reduction="none").double()
            real_BT = mask_BT[:, 1:].cpu().double()
            found_B[some] = (loss_BT * real_BT).sum(1) / real_BT.sum(1).clamp_min(1)
        return found_B

    return Target(name, score, wanted, "nats a token")


def batches(lm: LanguageModel, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(numbers of the rows, (B, T) ids, (B, T) mask) of rows of similar length, padded on the right."""
    order = sorted(range(len(rows)), key=lambda b: len(rows[b]))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        tokens_BT, mask_BT = lm.text.pad([rows[b] for b in some], "right")
        yield some, tokens_BT.to(lm.device), mask_BT.to(lm.device)
