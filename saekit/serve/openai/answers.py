"""Answers of the endpoint in OpenAI's format, whole or as a stream of chunks."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from saekit.serve.stream import Begun, End, Event, Likely, Token

DONE = "data: [DONE]\n\n"


def sse(data: Any) -> str:
    """One event of a stream of server-sent events."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


class Style(Protocol):
    """How one of the endpoints writes what the model says.

    Attributes:
        kind: `object` of a whole answer, and of its chunks.
        prefix: of the ids of answers.
    """

    kind: tuple[str, str]
    prefix: str

    def choice(self, row: int, said: Said) -> dict[str, Any]:
        """One answer, whole."""

    def first(self, row: int) -> list[dict[str, Any]]:
        """Choices of chunks that come before the text of a row."""

    def chunk(self, row: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of an answer."""


@dataclass
class Said:
    """What one row has said."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None


@dataclass
class Answer:
    """An answer as it comes.

    Args:
        model: as the request names it.
        style: of the endpoint.
        usage: whether a stream ends with the counts of tokens.
        echo: whether prompts are given back.
    """

    model: str
    style: Style
    usage: bool = False
    echo: bool = False

    def __post_init__(self) -> None:
        self._id, self._created = self.style.prefix + secrets.token_hex(12), int(time.time())
        self._said: list[Said] = []
        self._prompt_tokens = self._answer_tokens = 0

    def take(self, event: Event) -> Iterator[dict[str, Any]]:
        """Note an event, and give the chunks that it makes in a stream."""
        if isinstance(event, Begun):
            yield from self._begin(event)
            return
        said = self._said[event.row]
        if isinstance(event, Token):
            said.text += event.text
            said.tokens.append(event)
            self._answer_tokens += 1
            if event.text or event.chosen is not None:
                yield self._chunk(self.style.chunk(event.row, event.text, [event], None))
        elif isinstance(event, End):
            said.text += event.text
            said.reason = event.reason
            yield self._chunk(self.style.chunk(event.row, event.text, [], event.reason))

    def _begin(self, event: Begun) -> Iterator[dict[str, Any]]:
        self._said = [Said() for _ in event.prompts]
        # The prompt of several answers counts once, as in OpenAI's counts.
        self._prompt_tokens = sum(map(len, set(event.prompts)))
        for row, said in enumerate(self._said):
            for choice in self.style.first(row):
                yield self._chunk(choice)
            if self.echo:
                said.text = event.texts[row]
                said.tokens = list(event.scored[row]) if event.scored else []
                yield self._chunk(self.style.chunk(row, said.text, said.tokens, None))

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._body(self.style.kind[1], [choice]) | ({"usage": None} if self.usage else {})

    def last(self) -> Iterator[dict[str, Any]]:
        """The chunk at the end of a stream that has the counts, where they were asked for."""
        if self.usage:
            yield self._body(self.style.kind[1], []) | {"usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [self.style.choice(row, said) for row, said in enumerate(self._said)]
        return self._body(self.style.kind[0], choices) | {"usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        asked, said = self._prompt_tokens, self._answer_tokens
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model, "choices": choices}


class CompletionStyle:
    """Texts, with log-probabilities as lists over tokens."""

    kind = ("text_completion", "text_completion")
    prefix = "cmpl-"

    def __init__(self) -> None:
        self._length: dict[int, int] = {}

    def first(self, row: int) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def chunk(self, row: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of a text."""
        start = self._length.get(row, 0)
        self._length[row] = start + len(text)
        return {"index": row, "text": text, "logprobs": self._logprobs(tokens, start), "finish_reason": reason}

    def choice(self, row: int, said: Said) -> dict[str, Any]:
        """A whole text."""
        return {"index": row, "text": said.text, "logprobs": self._logprobs(said.tokens, 0), "finish_reason": said.reason}

    def _logprobs(self, tokens: Sequence[Token], start: int) -> dict[str, Any] | None:
        chosen = [token.chosen for token in tokens if token.chosen is not None]
        if not chosen:
            return None
        offsets = [start + sum(len(each.text) for each in chosen[:number]) for number in range(len(chosen))]
        return {
            "tokens": [each.text for each in chosen],
            "token_logprobs": [finite(each.logprob) for each in chosen],
            "top_logprobs": [{each.text: finite(each.logprob) for each in token.top} or None for token in tokens],
            "text_offset": offsets,
        }


class ChatStyle:
    """Messages of the assistant, with log-probabilities token by token."""

    kind = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl-"

    def first(self, row: int) -> list[dict[str, Any]]:
        """The role of the speaker."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": row, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunk(self, row: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A part of a message."""
        delta = {"content": text} if text or not reason else {}
        return {"index": row, "delta": delta, "logprobs": _content(tokens), "finish_reason": reason}

    def choice(self, row: int, said: Said) -> dict[str, Any]:
        """A whole message."""
        message = {"role": "assistant", "content": said.text, "refusal": None}
        return {"index": row, "message": message, "logprobs": _content(said.tokens), "finish_reason": said.reason}


def _content(tokens: Sequence[Token]) -> dict[str, Any] | None:
    found = [
        _likely(token.chosen) | {"top_logprobs": [_likely(each) for each in token.top]}
        for token in tokens
        if token.chosen is not None
    ]
    return {"content": found, "refusal": None} if found else None


def _likely(each: Likely) -> dict[str, Any]:
    return {"token": each.text, "logprob": finite(each.logprob), "bytes": list(each.text.encode())}


def finite(value: float) -> float | None:
    """null for what has no log-probability; JSON has no infinity."""
    return None if math.isnan(value) else max(value, -9999.0)
