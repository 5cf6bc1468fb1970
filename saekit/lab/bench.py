"""The laboratory's tasks and contrasts as the data that methods take: distinct prompts, tokenised in pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice, takewhile
from random import Random
from typing import Any, Protocol, TypeVar

from saekit.errors import ConfigError
from saekit.lab.concepts import CONCEPTS, Concept
from saekit.lab.registry import CONTRASTS, TASKS, Prompt
from saekit.lab.registry import Task as Definition
from saekit.lab.splits import Split
from saekit.lab.tokens import encode, lab_bos
from saekit.tasks import Contrast, Task
from saekit.tasks.task import PromptTexts

Named = TypeVar("Named")
Made = TypeVar("Made", covariant=True)
_Rows = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
DEFAULT = 200
_PATIENCE = 1000
"""Draws in a row that bring nothing new before a task counts as exhausted, and 20 more for each prompt that it brought."""


class _Maker(Protocol[Made]):
    """A task or a contrast."""

    @property
    def name(self) -> str: ...

    @property
    def make(self) -> Callable[[Random, Split], Made]: ...


@dataclass(frozen=True, kw_only=True)
class BoundTask(Task):
    """A task of the laboratory with B tokenised prompts.

    If an answer and its foil begin with the same tokens, `clean[b]` and `corrupted[b]` end with these tokens. Answers and foils
    of an open-ended task are empty, since only the task's check can judge a continuation.

    Attributes:
        task: the definition of the task.
        split: "train" for cases that the training corpus contains, "heldout" for the others.
        seed: seed of the prompts.
        prompts: the prompts as text.
    """

    task: Definition
    split: Split
    seed: int
    prompts: tuple[Prompt, ...]


def task(name: str, n: int | None = None, split: Split = "heldout", seed: int = 0, tokenizer: Any = None) -> BoundTask:
    """`n` distinct prompts of a task. A larger `n` gives the same prompts first.

    A prompt is replaced if its clean and corrupted texts differ in number of tokens, or if its answer equals its foil.

    Args:
        name: one of `TASKS`.
        n: number of prompts. None means 200, or all prompts of a task that has fewer.
        split: "train" for cases that the training corpus contains, "heldout" for the others.
        tokenizer: the tokenizer of the model under test, with its `bos_token_id`. None means that of the packaged model.

    Raises:
        ConfigError: the task is unknown (the message suggests the nearest name), or it has fewer than `n` prompts.
        ModelNotFound: no tokenizer is given, and the files of the packaged model are missing.
    """
    return bind(name, DEFAULT if n is None else n, 1 if n is None else n, split, seed, tokenizer)


def bind(name: str, wanted: int, least: int, split: Split, seed: int, tokenizer: Any) -> BoundTask:
    """As :func:`task`, but accepts fewer than `wanted` prompts if there are at least `least`."""
    found = find(TASKS, name, "task")
    _check(wanted, split)
    begin = lab_bos() if tokenizer is None else getattr(tokenizer, "bos_token_id", None)
    bound: dict[str, tuple[Prompt, _Rows]] = {}
    dropped: Counter[str] = Counter()
    draws = _draws(found, split, seed)
    barren = 0
    while len(bound) < wanted and barren < _PATIENCE + 20 * len(bound):
        drawn = list(islice(draws, min(wanted, 128)))
        fresh = [prompt for prompt in drawn if prompt.clean not in bound]
        dropped["seen before"] += len(drawn) - len(fresh)
        before = len(bound)
        for prompt, rows in zip(fresh, _tokenised(fresh, begin, tokenizer)):
            if why := _unfit(prompt, rows):
                dropped[why] += 1
            elif prompt.clean in bound:
                dropped["seen before"] += 1
            elif len(bound) < wanted:
                bound[prompt.clean] = prompt, rows
        barren = 0 if len(bound) > before else barren + len(drawn)
    if len(bound) < least:
        raise ConfigError(
            f"Task {name!r} has only {len(bound)} prompts in the split {split!r}, but {wanted} were requested.",
            f"Rejected prompts: {', '.join(f'{count} {why}' for why, count in dropped.items() if count)}.",
        )
    columns = zip(*(rows for _, rows in bound.values()))
    prompts = tuple(prompt for prompt, _ in bound.values())
    clean, corrupted, answers, foils = columns
    return BoundTask(
        name=found.name,
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        foils=foils,
        texts=tuple(PromptTexts(each.clean, each.corrupted, each.answer, each.foil) for each in prompts),
        task=found,
        split=split,
        seed=seed,
        prompts=prompts,
    )


def contrast(name: str, n: int = 200, split: Split = "train", seed: int = 0) -> Contrast:
    """`n` distinct pairs (positive, negative) of texts that differ in one thing. A larger `n` gives the same pairs first.

    Raises:
        ConfigError: the contrast is unknown (the message suggests the nearest name), or it has fewer than `n` pairs.
    """
    found = find(CONTRASTS, name, "contrast")
    _check(n, split)
    pairs: dict[tuple[str, str], None] = {}
    draws = _draws(found, split, seed)
    while len(pairs) < n:
        before = len(pairs)
        for pair in islice(draws, _PATIENCE + 20 * before):
            pairs[pair] = None
            if len(pairs) == n:
                break
        if len(pairs) == before:
            raise ConfigError(f"Contrast {name!r} has only {before} pairs in the split {split!r}, but {n} were requested.")
    return Contrast.of(name, pairs)


def concepts() -> list[Concept]:
    """Every concept that documents are labelled with, by name."""
    return [CONCEPTS[name] for name in sorted(CONCEPTS)]


def words_of(name: str) -> tuple[str, ...]:
    """The words by which a text names a concept; of a language, all words that English texts do not have.

    Raises:
        ConfigError: there is no such concept.
    """
    from saekit.lab.genres.foreign_stories import LANGUAGES, vocabulary

    concept = find(CONCEPTS, name, "concept")
    return tuple(sorted(vocabulary(name) - vocabulary("english"))) if name in LANGUAGES else concept.words


def find(known: Mapping[str, Named], name: str, what: str) -> Named:
    """`known[name]`, or an error that suggests the nearest name."""
    if name in known:
        return known[name]
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.0)
    raise ConfigError(
        f"There is no {what} {name!r}.", f"Did you mean {near[0]!r}? There are {', '.join(sorted(known))}." if near else None
    )


def _check(n: int, split: str) -> None:
    if n < 1:
        raise ConfigError(f"n is {n}; it must be at least 1.")
    if split not in ("train", "heldout"):
        raise ConfigError(f"There is no split {split!r}.", "The splits are train and heldout.")


def _draws(maker: _Maker[Made], split: Split, seed: int) -> Iterator[Made]:
    """An endless stream of draws, each with its own random generator."""
    for i in count():
        yield maker.make(Random(f"{seed}/{maker.name}/{split}/{i}"), split)


def _tokenised(prompts: list[Prompt], begin: int | None, tokenizer: Any) -> Iterator[_Rows]:
    """Token ids of clean, corrupted, answer and foil, in the form that :class:`BoundTask` describes."""
    texts = [text for p in prompts for text in (p.clean, p.corrupted, p.clean + p.answer, p.corrupted + p.foil)]
    ids = encode(texts, tokenizer).ids
    first = () if begin is None else (begin,)
    for i, prompt in zip(range(0, len(ids), 4), prompts):
        clean, corrupted, answered, foiled = map(tuple, ids[i : i + 4])
        if not prompt.answer.strip() or answered[: len(clean)] != clean or foiled[: len(corrupted)] != corrupted:
            yield first + clean, first + corrupted, (), ()
            continue
        answer, foil = answered[len(clean) :], foiled[len(corrupted) :]
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(answer, foil))))
        yield first + clean + answer[:shared], first + corrupted + foil[:shared], answer[shared:], foil[shared:]


def _unfit(prompt: Prompt, rows: _Rows) -> str:
    """The reason to reject a prompt, or "" if the prompt is usable."""
    clean, corrupted, answer, foil = rows
    if len(clean) != len(corrupted):
        return "of unequal length"
    return "with an answer equal to its foil" if prompt.answer.strip() and not (answer and foil) else ""
