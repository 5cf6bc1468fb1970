"""Tasks and contrasts as a method wants them: so many distinct prompts, tokenised, clean and corrupted side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, takewhile
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from saekit.errors import ConfigError
from saekit.lab.concepts import CONCEPTS, Concept
from saekit.lab.registry import CONTRASTS, TASKS, Prompt, Task
from saekit.lab.splits import Split
from saekit.lab.tokens import encode, lab_bos

if TYPE_CHECKING:
    import torch

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


@dataclass(frozen=True)
class BoundTask:
    """A task with its prompts, tokenised. B prompts, T positions.

    `clean[b]` and `corrupted[b]` have equally many tokens, BOS first where the tokenizer has one; `answers[b]` follow the former,
    `foils[b]` the latter, and the two differ in their first token: tokens that answer and foil begin with alike are part of
    `clean[b]` and `corrupted[b]`. An open-ended task, whose continuations only its check can judge, has empty answers and foils.
    """

    task: Task
    split: Split
    seed: int
    prompts: tuple[Prompt, ...]
    clean: tuple[tuple[int, ...], ...]
    corrupted: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    foils: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @cached_property
    def clean_BT(self) -> torch.Tensor:
        """(B, T) int64 ids of the clean prompts, padded on the right with 0."""
        return self._padded(self.clean)

    @cached_property
    def corrupted_BT(self) -> torch.Tensor:
        """(B, T) int64 ids of the corrupted prompts; position t of a row stands where t of the clean row does."""
        return self._padded(self.corrupted)

    @cached_property
    def mask_BT(self) -> torch.Tensor:
        """(B, T) int64, 1 at tokens and 0 at pads, of both."""
        return self._padded([[1] * len(row) for row in self.clean])

    @cached_property
    def answer_B(self) -> torch.Tensor:
        """(B,) int64 first token of each answer; :class:`ConfigError` where the task is open-ended."""
        return self._first(self.answers)

    @cached_property
    def foil_B(self) -> torch.Tensor:
        """(B,) int64 first token of each foil."""
        return self._first(self.foils)

    def _padded(self, rows: Any) -> torch.Tensor:
        import torch

        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    def _first(self, rows: tuple[tuple[int, ...], ...]) -> torch.Tensor:
        import torch

        if not all(rows):
            raise ConfigError(f"Task {self.name!r} is open-ended: no token is its answer.", "Judge continuations with its check.")
        return torch.tensor([row[0] for row in rows], dtype=torch.int64)


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
    return BoundTask(found, split, seed, tuple(prompt for prompt, _ in bound.values()), *columns)


def contrast(name: str, n: int = 200, split: Split = "train", seed: int = 0) -> list[tuple[str, str]]:
    """`n` distinct (positive, negative) texts that differ in one thing; more of them begin with the same ones.

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
    return list(pairs)


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
