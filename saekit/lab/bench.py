"""The laboratory's tasks and contrasts as the data that methods take: distinct prompts, tokenised, clean beside corrupted."""

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
    """A task of the laboratory with its prompts, tokenised. B prompts.

    Tokens that an answer and its foil begin with alike are part of `clean[b]` and `corrupted[b]`. An open-ended task, whose
    continuations only its check can judge, has empty answers and foils.

    Attributes:
        task: the task's definition.
        split: whether the cases are of those that training saw.
        seed: seed of the prompts.
        prompts: the prompts as the definition made them.
    """

    task: Definition
    split: Split
    seed: int
    prompts: tuple[Prompt, ...]


def task(name: str, n: int | None = None, split: Split = "heldout", seed: int = 0, tokenizer: Any = None) -> BoundTask:
    """`n` distinct prompts of a task; more of them begin with the same ones.

    Prompts whose clean and corrupted differ in length, or whose answer and foil do not differ, are drawn anew.

    Args:
        name: one of `TASKS`.
        n: how many; None is 200, or all where there are fewer.
        split: whether the cases are of those that training saw.
        tokenizer: a model's own, with its `bos_token_id`; None is the packaged model's.

    Raises:
        ConfigError: there is no such task (the message names the nearest), or it has fewer prompts.
        ModelNotFound: no tokenizer is given, and this installation lacks the packaged model.
    """
    return bind(name, DEFAULT if n is None else n, 1 if n is None else n, split, seed, tokenizer)


def bind(name: str, wanted: int, least: int, split: Split, seed: int, tokenizer: Any) -> BoundTask:
    """:func:`task` with `wanted` prompts, or all there are where these are `least` or more."""
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
            f"Task {name!r} has only {len(bound)} prompts in the split {split!r}; {wanted} were asked for.",
            f"Of those drawn were {', '.join(f'{count} {why}' for why, count in dropped.items() if count)}.",
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
    """`n` distinct (positive, negative) texts that differ in one thing; a larger `n` gives the same pairs first.

    Raises:
        ConfigError: there is no such contrast (the message names the nearest), or it has fewer pairs.
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
            raise ConfigError(f"Contrast {name!r} has only {before} pairs in the split {split!r}; {n} were asked for.")
    return Contrast.of(name, pairs)


def concepts() -> list[Concept]:
    """The inventory: every concept that documents are labelled with, by name."""
    return [CONCEPTS[name] for name in sorted(CONCEPTS)]


def find(known: Mapping[str, Named], name: str, what: str) -> Named:
    """`known[name]`, or an error that names the nearest."""
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
    """Draws without end, each from a generator of its own."""
    for i in count():
        yield maker.make(Random(f"{seed}/{maker.name}/{split}/{i}"), split)


def _tokenised(prompts: list[Prompt], begin: int | None, tokenizer: Any) -> Iterator[_Rows]:
    """Ids of clean, corrupted, answer and foil as :class:`BoundTask` has them."""
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
    """Why a prompt is of no use, or ""."""
    clean, corrupted, answer, foil = rows
    if len(clean) != len(corrupted):
        return "of unequal length"
    return "with an answer like its foil" if prompt.answer.strip() and not (answer and foil) else ""
