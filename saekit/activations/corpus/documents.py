"""Documents: what the rows of a corpus hold. A text, the messages of a chat, or token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saekit.activations.corpus.fields import NAME_FIELD
from saekit.errors import CorpusError, kind_words
from saekit.plugins import Registry, resolve


@dataclass(frozen=True)
class Chat:
    """The messages of a conversation, in the form that chat templates take: `role`, and `content` or tool calls."""

    messages: list[dict[str, Any]]
    where: str
    """What messages call its row."""


@dataclass(frozen=True)
class TokenIds:
    """A document that was tokenised before, by the tokenizer of the model."""

    ids: np.ndarray
    """(n,) int64, n > 0."""
    where: str
    """What messages call its row."""


Document = str | Chat | TokenIds
_LISTS, _NUMBERS = (list, tuple, np.ndarray), (int, float, np.number)
Reader = Callable[[Any, Mapping[str, Any], str], "Document | None"]
CONTENTS: Registry[Reader | str] = Registry(
    "kind of content",
    {
        "text": "saekit.activations.corpus.documents:read_text",
        "chat": "saekit.activations.corpus.chats:read_chat",
        "token ids": "saekit.activations.corpus.documents:read_ids",
    },
    error=CorpusError,
)
"""What a row may hold. Each row is a function that takes a value, the record that it is from, and what messages call the row. It
returns a document, "" for an empty one, or None where the value is of another kind."""


def document_of(value: Any, record: Mapping[str, Any], where: str) -> Document:
    """The document that the value of a field is; "" where it is empty.

    Args:
        value: what the record has in the field that is read.
        record: the record, whose other fields may say more about the value.
        where: what messages call the row.

    Raises:
        CorpusError: it is neither text nor chat messages nor token ids, or these are wrong.
    """
    for name in CONTENTS:
        if (document := resolve(CONTENTS[name])(value, record, where)) is not None:
            return document
    raise CorpusError(
        f"{where} holds {kind_words(type(value))}, not text, chat messages or token ids.",
        NAME_FIELD,
    )


def read_text(value: Any, record: Mapping[str, Any], where: str) -> str | None:
    """A text; "" for a missing value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return None
    # Half a surrogate pair, as careless JSON has it, is no character: no tokenizer takes it.
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def read_ids(value: Any, record: Mapping[str, Any], where: str) -> TokenIds | str | None:
    """Token ids: a list or an array of integers. Ids that the record's `attention_mask` masks are left out.

    Raises:
        CorpusError: the ids are not one list of integers, one is negative, or the mask has another length.
    """
    if not isinstance(value, _LISTS) or not len(value):
        return None
    inner = [each for each in value if isinstance(each, _LISTS)]
    if not all(isinstance(number, _NUMBERS) for row in (inner or [value]) for number in row):
        return None
    ids = _integers(value, f"{where} holds", "token ids")
    mask = record.get("attention_mask")
    if mask is not None:
        kept = _integers(mask, f"{where}: attention_mask holds", "zeros and ones")
        if len(kept) != len(ids):
            raise CorpusError(
                f"{where} has {len(ids)} token ids and an attention_mask of {len(kept)}.", "Correct the row, or leave it out."
            )
        ids = ids[kept != 0]
    if not len(ids):
        return ""
    if int(ids.min()) < 0:
        raise CorpusError(f"{where} holds {int(ids.min())}, which is not a token id.", "Ids count from 0.")
    return TokenIds(ids, where)


def _integers(value: Any, where: str, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CorpusError(
            f"{where} lists of different lengths, not {what}.", "Give one list of integers for each row."
        ) from error
    if array.ndim != 1:
        raise CorpusError(f"{where} lists of lists, not {what}.", "Give one list of integers for each row.")
    if array.dtype.kind not in "iu":
        raise CorpusError(f"{where} numbers that are not integers, not {what}.", "Give one list of integers for each row.")
    return array.astype(np.int64)
