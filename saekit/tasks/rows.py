"""From the texts of prompts to the token ids of a task. Every prompt that does not fit is reported by its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from saekit.errors import ConfigError
from saekit.tasks.task import PromptTexts, Task

Encode = Callable[[str], Sequence[int]]
_SHOWN = 10


class Row(NamedTuple):
    """One prompt of a task as token ids."""

    texts: PromptTexts
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    foil: tuple[int, ...]
    spans: dict[str, tuple[int, int]]


class Unfit(Exception):
    """A row that cannot be used: what is wrong, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def tokenised(texts: PromptTexts, encode: Encode, spans: Mapping[str, Any] | None = None) -> Row:
    """The token ids of one prompt. Tokens with which both the answer and the foil begin become part of the prompts.

    Args:
        texts: the texts.
        encode: token ids of a text, with BOS where texts begin with it.
        spans: by name, a part of the clean prompt as text, or its tokens as [start, end].

    Raises:
        Unfit: a prompt with its answer does not begin with the tokens of the prompt, the prompts have different numbers of
            tokens, answer and foil are equal, or a span is not in the prompt.
    """
    clean, answer = _split(encode, texts.clean, texts.answer)
    corrupted, foil = _split(encode, texts.corrupted, texts.foil)
    if len(clean) != len(corrupted):
        raise Unfit(
            f"clean has {len(clean)} tokens and corrupted {len(corrupted)}",
            "Give a clean and a corrupted prompt as many tokens, for example by words of equal length.",
        )
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(answer, foil))))
    clean, corrupted, answer, foil = clean + answer[:shared], corrupted + foil[:shared], answer[shared:], foil[shared:]
    if not answer or not foil:
        raise Unfit(
            f"the answer {texts.answer!r} and the foil {texts.foil!r} do not differ in a token",
            "Give an answer and a foil of which neither begins with the other.",
        )
    return Row(
        texts, clean, corrupted, answer, foil, {n: _span(each, n, texts.clean, encode) for n, each in (spans or {}).items()}
    )


def task_of(name: str, rows: Sequence[Row]) -> Task:
    """A task of rows that fit.

    Raises:
        ConfigError: there is no row, or some rows lack a span that others have.
    """
    if not rows:
        raise ConfigError(f"Task {name!r} has no prompts.", "Give at least one.")
    names = list(dict.fromkeys(span for row in rows for span in row.spans))
    for span in names:
        lacking = [i for i, row in enumerate(rows, start=1) if span not in row.spans]
        if lacking:
            raise ConfigError(f"The rows {_listed(lacking)} of task {name!r} lack the span {span!r}.", "Give it for all or none.")
    return Task(
        name,
        tuple(row.clean for row in rows),
        tuple(row.corrupted for row in rows),
        tuple(row.answer for row in rows),
        tuple(row.foil for row in rows),
        tuple(row.texts for row in rows),
        {span: tuple(row.spans[span] for row in rows) for span in names},
    )


def each_row(where: str, records: Iterable[Any], make: Callable[[Any], Any]) -> list[Any]:
    """What `make` makes of each record.

    Args:
        where: what the message calls their source.
        records: the records, numbered from 1.
        make: raises :class:`Unfit` for a record that cannot be used.

    Raises:
        ConfigError: names every row that cannot be used, with the reason, and gives the remedies.
    """
    made, wrong = [], []
    for number, record in enumerate(records, start=1):
        try:
            made.append(make(record))
        except Unfit as unfit:
            wrong.append((number, unfit))
    if wrong:
        said = "; ".join(f"row {number}: {unfit.what}" for number, unfit in wrong[:_SHOWN])
        more = f"; and the rows {_listed([number for number, _ in wrong[_SHOWN:]])}" if len(wrong) > _SHOWN else ""
        rows = f"{len(wrong)} of {len(made) + len(wrong)} rows cannot be used"
        raise ConfigError(
            f"{where}: {rows}. {said}{more}.".replace("..", "."), " ".join(dict.fromkeys(u.remedy for _, u in wrong))
        )
    return made


def _listed(numbers: Sequence[int], shown: int = 50) -> str:
    return ", ".join(map(str, numbers[:shown])) + (f" and {len(numbers) - shown} more" if len(numbers) > shown else "")


def _split(encode: Encode, start: str, end: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of `start`, and those that `end` adds to them."""
    ids, whole = tuple(encode(start)), tuple(encode(start + end))
    if whole[: len(ids)] != ids or not ids:
        raise Unfit(
            f"the tokens of {start + end!r:.120} do not begin with those of {start!r:.80}",
            "End the prompt where a token ends: the space before an answer belongs to the answer, as in ' Paris'.",
        )
    return ids, whole[len(ids) :]


def _span(span: Any, name: str, text: str, encode: Encode) -> tuple[int, int]:
    """The tokens `start:end` of a span."""
    whole = tuple(encode(text))
    match span:
        case str() if span.strip() and (at := text.find(span.strip())) >= 0:
            start = _common(tuple(encode(text[:at].rstrip())), whole) if text[:at].rstrip() else _begun(encode, whole)
            ids = tuple(encode(text[: at + len(span.strip())]))
            end = _common(ids, whole)
            return start, max(end if end == len(ids) else end + 1, start + 1)
        case [int(first), int(last)] if bool not in (type(first), type(last)) and 0 <= first < last <= len(whole):
            return first, last
    raise Unfit(
        f"the span {name!r}, {span!r:.60}, is not in the clean prompt",
        "Write a span as a part of the clean prompt, or as its tokens [start, end].",
    )


def _begun(encode: Encode, whole: Sequence[int]) -> int:
    """Number of tokens before the first word: 1 where texts begin with BOS."""
    return _common(tuple(encode("")), whole)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other))))
