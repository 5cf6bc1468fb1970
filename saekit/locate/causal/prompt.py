"""A single prompt with its subject as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.errors import ConfigError
from saekit.lab.tokens import encode
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
        answer: the text that follows the prompt; None: the token that the model finds most likely.

    Raises:
        ConfigError: the prompt does not hold the subject, the answer is empty or shares a token with the prompt, or the tokenizer
            gives no character offsets.
    """
    start = prompt.rfind(subject)
    if not subject.strip() or start < 0:
        raise ConfigError(f"The prompt {prompt!r:.80} does not hold {subject!r:.40}.", "Write the subject as in the prompt.")
    (row,) = lm.text.ids([prompt])
    (offsets,) = encode([prompt], lm.text.tokenizer).offsets
    first, end = start + len(subject) - len(subject.lstrip()), start + len(subject.rstrip())
    inside = [t for t, (left, right) in enumerate(offsets) if left < end and right > first]
    added = len(row) - len(offsets)  # BOS
    likely = lm.run([row], logits="last").logits
    assert likely is not None
    ranked = likely[0].argsort(descending=True).tolist()
    answers = ranked[:1] if answer is None else _continued(lm, row, prompt, answer)
    foil = next(token for token in ranked if token != answers[0])
    span = (inside[0] + added, inside[-1] + 1 + added)
    return Task("prompt", (tuple(row),), (tuple(row),), (tuple(answers),), ((foil,),), spans={"subject": (span,)})


def _continued(lm: LanguageModel, row: list[int], prompt: str, answer: str) -> list[int]:
    """Token ids that the answer adds to the prompt; a space is put between them where the prompt needs one."""
    for text in (answer, f" {answer}"):
        (whole,) = lm.text.ids([prompt + text])
        if whole[: len(row)] == row and len(whole) > len(row):
            return whole[len(row) :]
    raise ConfigError(
        f"The tokens of {prompt + answer!r:.80} do not begin with those of the prompt.", "Begin the answer where a token begins."
    )
