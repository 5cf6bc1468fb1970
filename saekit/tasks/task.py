"""Tasks: prompts with answers, each with a corrupted prompt that has another answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from saekit.errors import ConfigError
from saekit.tasks import values

if TYPE_CHECKING:
    import torch

Rows = tuple[tuple[int, ...], ...]
Spans = tuple[tuple[int, int], ...]


class PromptTexts(NamedTuple):
    """One prompt of a task as text. `answer` follows `clean`; `foil` follows `corrupted`."""

    clean: str
    corrupted: str
    answer: str
    foil: str


@dataclass(frozen=True)
class Task:
    """Prompts of a task as token ids, and as text where it is known. B prompts, T positions.

    Attributes:
        name: name of the task.
        clean: token ids of each prompt, with BOS where the tokenizer has one.
        corrupted: a prompt of as many tokens as the clean one, with another answer.
        answers: the token ids that follow each clean prompt; empty where only the text of a continuation can be judged.
        foils: the token ids that follow each corrupted prompt. An answer and its foil differ in their first token.
        texts: the prompts as text; empty where only token ids are known.
        spans: named places of the prompts, such as "subject": for each prompt the tokens `start:end`, the same in the clean and
            the corrupted one.

    Raises:
        ConfigError: the rows are not token ids, or do not fit together; or a span lies outside of its prompt.
    """

    name: str
    clean: Rows
    corrupted: Rows
    answers: Rows
    foils: Rows
    texts: tuple[PromptTexts, ...] = ()
    spans: Mapping[str, Spans] = field(default_factory=dict, hash=False)

    _FIELDS: ClassVar[tuple[str, ...]] = ("name", "clean", "corrupted", "answers", "foils", "texts")

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answers", "foils"):
            object.__setattr__(self, name, values.rows(getattr(self, name), f"{name} prompts" if name[0] == "c" else name))
        object.__setattr__(self, "texts", tuple(PromptTexts(*values.texts(each, "texts")) for each in self.texts))
        lengths = {len(self.clean), len(self.corrupted), len(self.answers), len(self.foils), len(self.texts or self.clean)}
        if len(lengths) > 1:
            raise ConfigError(f"Task {self.name!r} has {sorted(lengths)} rows.", "Give as many of each as there are prompts.")
        for number, (clean, corrupted, answer, foil) in enumerate(zip(self.clean, self.corrupted, self.answers, self.foils)):
            if not clean or len(clean) != len(corrupted):
                raise ConfigError(
                    f"Prompt {number} of task {self.name!r} has {len(clean)} clean and {len(corrupted)} corrupted tokens.",
                    "Give as many of both, at least one.",
                )
            if bool(answer) != bool(foil) or (answer and answer[0] == foil[0]):
                raise ConfigError(
                    f"Answer and foil of prompt {number} of task {self.name!r} begin with the same token, or one is missing.",
                    "Move the tokens that they share into the prompts.",
                )
        object.__setattr__(self, "spans", _checked_spans(self.name, self.spans, self.clean))

    @classmethod
    def of(
        cls,
        name: str,
        texts: Iterable[Sequence[str]],
        encode: Callable[[str], Sequence[int]],
        spans: Iterable[Mapping[str, Any]] | None = None,
    ) -> Task:
        """A task from texts (clean, corrupted, answer, foil).

        Tokens with which both an answer and its foil begin become part of the prompts.

        Args:
            encode: token ids of a text, with BOS: for example `lambda text: lm.text.ids([text])[0]`.
            spans: for each prompt its spans by name, as a part of the clean prompt (text) or as its tokens [start, end].

        Raises:
            ConfigError: rows cannot be used; the message names each, counted from 1, with the reason and the remedy.
        """
        from saekit.tasks.rows import each_row, task_of, tokenised

        prompts = [PromptTexts(*values.texts(each, "texts")) for each in texts]
        named = list(spans) if spans is not None else [{}] * len(prompts)
        if len(named) != len(prompts):
            raise ConfigError(
                f"Task {name!r} has {len(prompts)} prompts and spans of {len(named)}.", "Give spans of each prompt."
            )
        rows = each_row(f"Task {name!r}", list(zip(prompts, named)), lambda row: tokenised(row[0], encode, row[1]))
        return task_of(name, rows)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def longest_answer(self) -> int:
        """Number of tokens of the longest answer; 0 for an open-ended task."""
        return max(map(len, self.answers), default=0)

    def first_tokens(self) -> Task:
        """The same prompts with the first token of each answer and foil."""
        return self._with(
            answers=tuple(row[:1] for row in self.answers),
            foils=tuple(row[:1] for row in self.foils),
        )

    def without_first_token(self) -> Task:
        """The same prompts without their first token, such as a BOS with which texts of a model do not begin."""
        return self._with(
            clean=tuple(row[1:] for row in self.clean),
            corrupted=tuple(row[1:] for row in self.corrupted),
            spans={name: tuple((start - 1, end - 1) for start, end in rows) for name, rows in self.spans.items()},
        )

    def forced(self) -> Task:
        """The prompts, each followed by all tokens of its answer but the last, so that one run predicts the whole answer.

        Corrupted prompts are followed by the answers too: a metric compares the same answer in both. The task has no answers of
        its own: metrics hold them. Its span "last" is the last token of the prompts before the answers.
        """
        extended = {
            name: tuple(prompt + answer[:-1] for prompt, answer in zip(getattr(self, name), self.answers))
            for name in ("clean", "corrupted")
        }
        last = tuple((len(row) - 1, len(row)) for row in self.clean)
        none: Rows = ((),) * len(self)
        return self._with(**extended, answers=none, foils=none, texts=(), spans={**self.spans, "last": last})

    def positions(self, name: str | int) -> Rows:
        """The positions of each prompt that `name` means.

        Args:
            name: a position from 0, "last", or the name of a span.

        Raises:
            ConfigError: there is no such span, or a prompt has fewer tokens.
        """
        if isinstance(name, str) and name in self.spans:
            return tuple(tuple(range(start, end)) for start, end in self.spans[name])
        if name == "last":
            return tuple((len(row) - 1,) for row in self.clean)
        if not str(name).isdecimal():
            raise ConfigError(
                f"Task {self.name!r} has no positions {name!r}.",
                f"Write a number from 0, last{''.join(f', {each}' for each in self.spans)}.",
            )
        short = next((i for i, row in enumerate(self.clean) if int(name) >= len(row)), None)
        if short is not None:
            raise ConfigError(
                f"Prompt {short} of task {self.name!r} has {len(self.clean[short])} tokens and no position {name}.",
                "Choose a position that every prompt has, or name a span.",
            )
        return ((int(name),),) * len(self)

    def __getitem__(self, index: slice) -> Task:
        """Some of the prompts, as a task."""
        if not isinstance(index, slice):
            raise TypeError("a task is indexed by slices")
        return self._with(
            **{name: getattr(self, name)[index] for name in ("clean", "corrupted", "answers", "foils", "texts")},
            spans={name: rows[index] for name, rows in self.spans.items()},
        )

    def _with(self, **changes: Any) -> Task:
        """A plain task with some fields changed."""
        fields = {name: getattr(self, name) for name in (*self._FIELDS, "spans")}
        return Task(**{**fields, **changes})

    @cached_property
    def clean_BT(self) -> torch.Tensor:
        """(B, T) int64 ids of the clean prompts, padded on the right with 0."""
        return _padded(self.clean)

    @cached_property
    def corrupted_BT(self) -> torch.Tensor:
        """(B, T) int64 ids of the corrupted prompts; each position corresponds to the one of the clean row."""
        return _padded(self.corrupted)

    @cached_property
    def mask_BT(self) -> torch.Tensor:
        """(B, T) int64, 1 at tokens and 0 at pads, of the clean and the corrupted prompts."""
        return _padded([[1] * len(row) for row in self.clean])

    @cached_property
    def last_B(self) -> torch.Tensor:
        """(B,) int64 position of the last token of each prompt, whose prediction is the answer."""
        return self.mask_BT.sum(1) - 1

    @cached_property
    def answer_B(self) -> torch.Tensor:
        """(B,) int64 first token of each answer.

        Raises:
            ConfigError: the task is open-ended: only the text of a continuation can be judged.
        """
        return self._first(self.answers)

    @cached_property
    def foil_B(self) -> torch.Tensor:
        """(B,) int64 first token of each foil; raises as :attr:`answer_B`."""
        return self._first(self.foils)

    def _first(self, rows: Rows) -> torch.Tensor:
        import torch

        if not all(rows):
            raise ConfigError(f"Task {self.name!r} is open-ended: no token is its answer.", "Judge continuations with its check.")
        return torch.tensor([row[0] for row in rows], dtype=torch.int64)

    def save(self, path: str | Path) -> None:
        """Write the task to a JSON file, whole or not at all."""
        found = {name: getattr(self, name) for name in self._FIELDS}
        values.save(path, "task", {**found, "spans": dict(self.spans)} if self.spans else found)

    @staticmethod
    def load(path: str | Path) -> Task:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: there is no such file, or it does not hold a task.
        """
        found = values.load(path, "task", Task._FIELDS, ("spans",))
        if not isinstance(found["name"], str) or not isinstance(found["texts"], list):
            raise ConfigError(f"{path} does not hold a task: its name is not text, or its texts are not a list.")
        if any(len(values.texts(each, "texts")) != len(PromptTexts._fields) for each in found["texts"]):
            raise ConfigError(f"{path} does not hold a task: its texts must be lists of clean, corrupted, answer and foil.")
        return Task(**found)


def _checked_spans(task: str, spans: Any, clean: Rows) -> dict[str, Spans]:
    """Spans as tuples of (start, end), checked against the prompts."""
    if not isinstance(spans, Mapping) or not all(isinstance(name, str) for name in spans):
        raise ConfigError(f"The spans of task {task!r} are {spans!r:.80}.", "Give a mapping from names to (start, end) rows.")
    checked: dict[str, Spans] = {}
    for name, each in spans.items():
        rows = values.rows(each, f"spans {name!r}")
        if len(rows) != len(clean):
            raise ConfigError(
                f"Task {task!r} has {len(clean)} prompts and {len(rows)} spans {name!r}.", "Give one for each prompt."
            )
        for number, (row, span) in enumerate(zip(clean, rows)):
            if len(span) != 2 or not span[0] < span[1] <= len(row):
                raise ConfigError(
                    f"The span {name!r} of prompt {number} of task {task!r} is {span}; the prompt has {len(row)} tokens.",
                    "Give (start, end) with start < end, counted in tokens from 0.",
                )
        checked[name] = tuple((start, end) for start, end in rows)
    return checked


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
