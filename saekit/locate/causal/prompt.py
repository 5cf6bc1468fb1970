"""A single prompt with its subject as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.steer.weights.prompts import continued, span_of
from saekit.tasks import Task

if TYPE_CHECKING:
    from saekit.lm import LanguageModel


@torch.no_grad()
def prompt_task(lm: LanguageModel, prompt: str, subject: str, answer: str | None = None) -> Task:
    """A task of one prompt, whose span "subject" holds the tokens of the last occurrence of a text.

    The corrupted prompt is the clean one, because noise corrupts it. The foil is the most likely token that does not begin the
    answer.

    Args:
        lm: the model, with its tokenizer.
        prompt: the text.
        subject: the part of it that is to be hidden by noise.
        answer: the text that follows the prompt, after a space where it needs one; None: the token that the model finds most
            likely.

    Raises:
        ConfigError: the prompt does not hold the subject, the answer is empty or shares a token with the prompt, or the tokenizer
            gives no character offsets.
    """
    span = span_of(lm, prompt, subject)
    (row,) = lm.text.ids([prompt])
    likely = lm.run([row], logits="last").logits
    assert likely is not None
    ranked = likely[0].argsort(descending=True).tolist()
    answers = ranked[:1] if answer is None else continued(lm, prompt, answer)
    foil = next(token for token in ranked if token != answers[0])
    return Task("prompt", (tuple(row),), (tuple(row),), (tuple(answers),), ((foil,),), spans={"subject": (span,)})
