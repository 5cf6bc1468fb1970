"""Facts to edit: what a prompt about a subject shall be answered with, and the prompts on which the edit is judged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError, kind_words
from saekit.json_files import parse_json, read_bytes
from saekit.tasks.rows import Unfit, each_row

_FIELDS = ("prompt", "subject", "target", "true", "rephrasings", "paraphrases", "neighbourhood", "portability")
_HINT = 'Write rows like {"prompt": "The capital of France is", "subject": "France", "target": "Rome"}.'


@dataclass(frozen=True)
class Question:
    """A prompt on which an edit is judged, and what a continuation shall begin with; None: what it was before the edit."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Fact:
    """A fact to write into a model.

    Attributes:
        prompt: ends where the target begins: "The capital of France is".
        subject: the part of the prompt that the fact is about: "France".
        target: the new answer: "Rome".
        true: the old answer, or "".
        rephrasings: further prompts with the subject that the edit is fitted on.
        paraphrases: prompts with the same answer, on which the edit is judged.
        neighbourhood: prompts whose answers are to stay.
        portability: prompts whose answers follow from the new fact.
    """

    prompt: str
    subject: str
    target: str
    true: str = ""
    rephrasings: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    neighbourhood: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As a row of a facts file."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS[:4] if getattr(self, name)}
        found |= {name: list(getattr(self, name)) for name in _FIELDS[4:6] if getattr(self, name)}
        for name in _FIELDS[6:]:
            if questions := getattr(self, name):
                found[name] = [
                    {"prompt": each.prompt, **({} if each.answer is None else {"answer": each.answer})} for each in questions
                ]
        return found


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from a file of JSON Lines.

    A row has `prompt`, `subject` and `target`. It may have `true`; lists of texts in `rephrasings` and `paraphrases`; and lists
    of texts or of {"prompt", "answer"} in `neighbourhood` and `portability`. {} in a prompt stands for the subject.

    Raises:
        ConfigError: the file cannot be read, or rows of it cannot be used; the message names each, counted from 1.
    """
    path = Path(path)
    content = read_bytes(path, error=ConfigError, hint=_HINT)
    try:
        lines = [line for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.", _HINT) from error
    if not lines:
        raise ConfigError(f"{path} holds no facts.", _HINT)
    return each_row(str(path), lines, _parsed)


def write_facts(facts: Iterable[Fact], path: str | Path) -> None:
    """Write a file for :func:`read_facts`."""
    from saekit.files import write_whole

    write_whole(Path(path), "".join(json.dumps(fact.to_dict(), ensure_ascii=False) + "\n" for fact in facts))


def _parsed(line: str) -> Fact:
    try:
        record = parse_json(line, where="the row", error=ConfigError)
    except ConfigError as error:
        raise Unfit("it is not JSON", _HINT) from error
    if not isinstance(record, Mapping):
        raise Unfit(f"it is {kind_words(type(record))}, not an object", _HINT)
    if unknown := [name for name in record if name not in _FIELDS]:
        raise Unfit(f"it has an unknown field {unknown[0]!r:.40}", f"The fields are {', '.join(_FIELDS)}.")
    for name in _FIELDS[:3]:
        if name not in record:
            raise Unfit(f"the field {name!r} is missing", _HINT)
    prompt, subject, target, true = (_text(name, record.get(name, "")) for name in _FIELDS[:4])
    for name, value in zip(_FIELDS, (prompt, subject, target)):
        if not value.strip():
            raise Unfit(f"{name!r} is empty", _HINT)

    def filled(text: str) -> str:
        return text.replace("{}", subject)

    prompt = filled(prompt)
    rephrasings, paraphrases = (tuple(map(filled, _texts(name, record.get(name)))) for name in _FIELDS[4:6])
    for text in (prompt, *rephrasings):
        if subject not in text:
            raise Unfit(
                f"the prompt {text!r:.80} does not hold the subject {subject!r:.40}", "Write the subject as in the prompt."
            )
    if true and true.strip() == target.strip():
        raise Unfit("'true' and 'target' are the same", "Give the old answer as 'true' and the new one as 'target'.")
    questions = [tuple(Question(filled(each.prompt), each.answer) for each in _questions(n, record.get(n))) for n in _FIELDS[6:]]
    return Fact(prompt, subject, target, true, rephrasings, paraphrases, *questions)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Unfit(f"{name!r} is {kind_words(type(value))}, not text", _HINT)
    return value


def _texts(name: str, value: Any) -> Sequence[str]:
    if value is not None and not isinstance(value, list):
        raise Unfit(f"{name!r} is {kind_words(type(value))}, not a list", f"Write {name} as a list of texts.")
    return [_text(name, each) for each in value or ()]


def _questions(name: str, value: Any) -> list[Question]:
    if value is not None and not isinstance(value, list):
        raise Unfit(f"{name!r} is {kind_words(type(value))}, not a list", f"Write {name} as a list of prompts.")
    found = []
    for each in value or ():
        if isinstance(each, Mapping) and set(each) <= {"prompt", "answer"} and "prompt" in each:
            answer = each.get("answer")
            found.append(Question(_text(name, each["prompt"]), None if answer is None else _text(name, answer)))
        elif isinstance(each, str):
            found.append(Question(each))
        else:
            raise Unfit(f"{name!r} holds something that is no prompt: {each!r:.40}", 'Write {"prompt": "...", "answer": "..."}.')
    if name == "portability" and any(each.answer is None for each in found):
        raise Unfit("a prompt in 'portability' has no answer", 'Write {"prompt": "...", "answer": "..."}.')
    return found
