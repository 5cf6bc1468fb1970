"""Where a subject stands in a prompt, and which tokens an answer adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekit.errors import ConfigError
from saekit.lab.tokens import encode

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

_SCRIPTS_WITHOUT_SPACES = 0x2E80  # first code point of the East Asian scripts


def span_of(lm: LanguageModel, prompt: str, part: str) -> tuple[int, int]:
    """The tokens `start:end` of the last occurrence of `part` in `prompt`, counted with BOS where texts begin with it.

    Raises:
        ConfigError: the prompt does not hold it, or the tokenizer gives no character offsets.
    """
    start = prompt.rfind(part)
    if not part.strip() or start < 0:
        raise ConfigError(f"The prompt {prompt!r:.80} does not hold {part!r:.40}.", "Write the subject as in the prompt.")
    (row,) = lm.text.ids([prompt])
    (offsets,) = encode([prompt], lm.text.tokenizer).offsets
    first, end = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
    inside = [t for t, (left, right) in enumerate(offsets) if left < end and right > first]
    added = len(row) - len(offsets)  # BOS
    return inside[0] + added, inside[-1] + 1 + added


def spaced(prompt: str, answer: str) -> str:
    """`answer` as it follows `prompt`: with a space before it where two words would otherwise run together."""
    if not prompt or not answer or prompt[-1].isspace() or not answer[0].isalnum():
        return answer
    return answer if prompt[-1] in "([{\"'" or ord(answer[0]) >= _SCRIPTS_WITHOUT_SPACES else f" {answer}"


def continued(lm: LanguageModel, prompt: str, answer: str) -> list[int]:
    """Token ids that an answer adds to a prompt, with a space between them where the prompt needs one.

    Raises:
        ConfigError: the tokens of both together do not begin with those of the prompt.
    """
    (row,) = lm.text.ids([prompt])
    for text in dict.fromkeys((spaced(prompt, answer), answer)):
        (whole,) = lm.text.ids([prompt + text])
        if whole[: len(row)] == row and len(whole) > len(row):
            return whole[len(row) :]
    raise ConfigError(
        f"The tokens of {prompt + spaced(prompt, answer)!r:.80} do not begin with those of the prompt.",
        "Begin the answer where a token begins.",
    )
