"""Chat messages in the two layouts that data sets have: that of OpenAI, and that of ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekit.activations.corpus.documents import Chat
from saekit.errors import CorpusError, kind_words
from saekit.plugins import nearest

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "model")
"""Roles of messages in the layout of OpenAI. Templates differ in which of them they take."""
_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Names of the field `from` in the layout of ShareGPT, and the role of each."""
_LEAVE_OUT = "Correct the row, or leave it out (--records)."


def read_chat(value: Any, record: Mapping[str, Any], where: str) -> Chat | None:
    """The messages of a chat: a list of `{"role": ..., "content": ...}` (OpenAI) or of `{"from": ..., "value": ...}` (ShareGPT).

    A content that is null beside tool calls stays null. Other fields that are null are left out.

    Raises:
        CorpusError: a message has no role or no content, they are of a wrong type, or the role is unknown.
    """
    if isinstance(value, Mapping):  # a list of records as `datasets` stores a Sequence of them
        value = _transposed(value)
    if not isinstance(value, list | tuple) or not value or not any(isinstance(each, Mapping) for each in value):
        return None
    return Chat([_message(each, f"{where}, message {number}") for number, each in enumerate(value)], where)


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """{"role": [..], "content": [..]} as a list of messages; None where it is something else."""
    if not ({"role", "from"} & columns.keys()) or not all(isinstance(each, list) for each in columns.values()):
        return None
    if len({len(each) for each in columns.values()}) != 1:
        return None
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise CorpusError(f"{where} is {kind_words(type(message))}, not a record with a role and a content.", _LEAVE_OUT)
    given = {key: value for key, value in message.items() if value is not None}
    if "role" not in given and "from" in given:
        given = _from_sharegpt(given, where)
    if "role" not in given:
        raise CorpusError(f"{where} has no role; it has {', '.join(map(repr, message))}.", _LEAVE_OUT)
    role = given["role"]
    if role not in ROLES:
        near = nearest(role, ROLES) if isinstance(role, str) else f"Known roles: {', '.join(ROLES)}."
        raise CorpusError(f"{where} has an unknown role {role!r:.60}.", f"{near} {_LEAVE_OUT}")
    if "content" in message and message["content"] is None:
        if not _calls(given):
            raise CorpusError(f"{where}: its content is null.", _LEAVE_OUT)
        given["content"] = None  # some templates take null, but no missing content
    _check_content(given, where)
    return given


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _from_sharegpt(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker.lower() not in _SHAREGPT:
        raise CorpusError(f"{where} is from {speaker!r:.60}, which is unknown.", f"Known: {', '.join(_SHAREGPT)}. {_LEAVE_OUT}")
    if not isinstance(message.get("value"), str):
        raise CorpusError(f"{where} has {kind_words(type(message.get('value')))} as its value, not text.", _LEAVE_OUT)
    return {"role": _SHAREGPT[speaker.lower()], "content": message["value"]}


def _check_content(message: Mapping[str, Any], where: str) -> None:
    """Raise CorpusError unless the content is text, parts of text, or null or missing beside tool calls."""
    content = message.get("content")
    if content is None:
        if not _calls(message):
            raise CorpusError(f"{where} has no content; it has {', '.join(map(repr, message))}.", _LEAVE_OUT)
        return
    if isinstance(content, str):
        return
    if not isinstance(content, Sequence):
        raise CorpusError(f"{where} has {kind_words(type(content))} as its content, not text.", _LEAVE_OUT)
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of type {kind!r}" if isinstance(kind, str) else kind_words(type(part))
            raise CorpusError(f"{where} holds {what}; only text is read.", _LEAVE_OUT)
