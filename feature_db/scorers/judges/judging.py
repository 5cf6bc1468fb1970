"""What scores by a judge share: the judge, its questions, and reading its answers strictly."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from feature_db.chat.asking import Nonsense, ask
from feature_db.chat.model import ChatModel, NoAnswer, Usage
from feature_db.chat.prompt import Prompt
from feature_db.chat.running import stream
from feature_db.chat.tokens import Estimate
from feature_db.scorers.given import Given
from feature_db.scorers.proportions import Score
from feature_db.scorers.registry import Result
from feature_db.scorers.subject import Subject
from saekit.errors import ConfigError

JUDGE, USAGE, MAX_TOKENS = "judge", "usage", "max_tokens"
"""Names of options: the :class:`ChatModel`, the :class:`Usage` that counts its tokens, and most tokens of an answer."""
TEXTS = {"detection": 20, "fuzzing": 20, "simulation": 6, "intruder": 40}
"""Texts on which the feature fires, for each scorer; the others are as many."""
_MAX_TOKENS, _TRIES = 400, 3
_ANSWER = re.compile(r"^[\s*_`>#-]*answer\s*:[\s*_`]*(.*?)[\s*_`.]*$", re.IGNORECASE | re.MULTILINE)
_PAIR = re.compile(r"(\d{1,5})\s*=\s*(\d{1,2})")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Judge:
    """A chat model that answers one kind of question."""

    name: str
    """Of the scorer and its prompt."""
    model: ChatModel
    prompt: Prompt
    max_tokens: int
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, subject: Subject, name: str) -> Judge:
        """The judge that the user named, with the prompt of a scorer.

        Raises:
            ConfigError: the user named none.
        """
        model = subject.options.get(JUDGE)
        if model is None:
            hint = "Give --endpoint URL --model NAME, or --local MODEL. The scorers of embedding and surprisal need none."
            raise ConfigError(f"The scorer {name} needs a language model as judge.", hint)
        return cls(name, model, Prompt.packaged(name), int(subject.options.get(MAX_TOKENS, _MAX_TOKENS)), _usage(subject.options))

    async def __call__(self, read: Callable[[str], Read], **values: str) -> Read:
        """What `read` makes of the answer to the prompt with these values.

        Raises:
            NoAnswer: there is no usable answer.
            EndpointError: no request can succeed.
        """
        messages = self.prompt.messages(**values)
        return await ask(self.model, messages, read, max_tokens=self.max_tokens, tries=_TRIES, usage=self.usage)


def judged(
    subject: Subject,
    labels: Iterable[Given],
    name: str,
    one: Callable[[Subject, Judge, Given], Awaitable[Mapping[str, Score]]],
) -> Iterator[Result]:
    """A result for each label, in the order in which the judge comes to them.

    Args:
        subject: the dictionary and held-out texts.
        labels: to be judged.
        name: of the scorer, and of its prompt.
        one: the scores of one label; raises :class:`NoAnswer` with the reason where there are none.
    """
    judge = Judge.of(subject, name)

    async def work(label: Given) -> Result:
        if reason := subject.too_few(label.feature):
            return Result(label, failed=reason)
        try:
            return Result(label, dict(await one(subject, judge, label)))
        except NoAnswer as error:
            return Result(label, failed=error.reason)

    return stream(labels, work, judge.model.concurrency, judge.model.close)


async def each_answer(questions: Sequence[Any], answer: Callable[[Any], Awaitable[Read]]) -> list[tuple[Any, Read]]:
    """Questions with their answers, without those that have none.

    Raises:
        NoAnswer: none has an answer; the reason is that of the last.
    """
    found, last = [], NoAnswer("there is no held-out text to ask about")
    for question in questions:
        try:
            found.append((question, await answer(question)))
        except NoAnswer as error:
            last = error
    if not found:
        raise last
    return found


def numbered(texts: Sequence[str]) -> str:
    """Texts as a prompt shows them."""
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1))


def read_numbers(text: str, most: int) -> set[int]:
    """The numbers, from 1 to `most`, in `ANSWER: 2, 5` or `ANSWER: none`.

    Raises:
        Nonsense: the answer is something else.
    """
    line = _line(text)
    if line.casefold() == "none":
        return set()
    parts = [part.strip() for part in line.strip("[]()").split(",")]
    if not all(re.fullmatch(r"\d{1,5}", part) for part in parts):
        raise Nonsense("the line is no list of numbers")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers) or not all(1 <= number <= most for number in numbers):
        raise Nonsense(f"the numbers are not different ones from 1 to {most}")
    return set(numbers)


def read_number(text: str, most: int) -> int:
    """The one number, from 1 to `most`, in `ANSWER: 2`.

    Raises:
        Nonsense: the answer is something else.
    """
    numbers = read_numbers(text, most)
    if len(numbers) != 1:
        raise Nonsense("the line is not one number")
    return numbers.pop()


def read_levels(text: str, most: int) -> list[int]:
    """The levels of pieces 1 to `most` in `ANSWER: 3=10, 7=4` or `ANSWER: none`; pieces that are not named have 0.

    Raises:
        Nonsense: the answer is something else.
    """
    line, levels = _line(text), [0] * most
    if line.casefold() == "none":
        return levels
    for part in line.strip("[]()").split(","):
        pair = _PAIR.fullmatch(part.strip())
        if pair is None or not 1 <= int(pair[1]) <= most or int(pair[2]) > 10:
            raise Nonsense(f"{part.strip()[:40]!r} is no piece from 1 to {most} with a value from 0 to 10")
        if levels[int(pair[1]) - 1]:
            raise Nonsense(f"piece {pair[1]} has two values")
        levels[int(pair[1]) - 1] = int(pair[2])
    return levels


def _line(text: str) -> str:
    """What stands after `ANSWER:` in the last line.

    Raises:
        Nonsense: there is no such line, or several.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    found = _ANSWER.findall("\n".join(lines))
    if len(found) != 1 or not _ANSWER.match(lines[-1]) or not found[0]:
        raise Nonsense("it does not end with one line that begins with ANSWER:")
    return str(found[0])


def _usage(options: Mapping[str, Any]) -> Usage:
    usage = options.get(USAGE)
    return usage if isinstance(usage, Usage) else Usage()


_TEXT_TOKENS, _PROMPT_TOKENS = 60, 180
"""About how many tokens a held-out text and the prompt have."""
_COSTS: dict[str, Callable[[int], tuple[int, int, int]]] = {
    "detection": lambda n: (-(-2 * n // 5), 5 * _TEXT_TOKENS, 12),
    "fuzzing": lambda n: (-(-2 * n // 5), 5 * _TEXT_TOKENS, 12),
    "simulation": lambda n: (2 * n, 7 * _TEXT_TOKENS, 40),
    "intruder": lambda n: (n // 4, 5 * _TEXT_TOKENS, 8),
}
"""Questions about a label, tokens of the texts in one, and tokens of an answer, by the number of texts of each kind."""


def estimated(scorer: str, labels: int, texts: int | None) -> Estimate:
    """About how much a scorer asks about so many labels; for intruder, about so many features.

    It is too high for features that fire in few held-out documents, and too low for models that think before they answer.

    Args:
        scorer: its name.
        labels: number of labels.
        texts: of each kind; None: the default of the scorer.
    """
    cost = _COSTS.get(scorer, _COSTS["detection"])
    questions, tokens_in, tokens_out = cost(texts or TEXTS.get(scorer, TEXTS["detection"]))
    return Estimate(labels * questions, labels * questions * (_PROMPT_TOKENS + tokens_in), labels * questions * tokens_out)
