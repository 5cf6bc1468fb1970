"""What a chat model is, and what it gives instead of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Messages = Sequence[Mapping[str, str]]
"""A chat: messages with `role` (system, user, assistant) and `content`."""
_THOUGHT = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a chat model said."""

    text: str
    tokens_in: int
    tokens_out: int
    requests: int = 1
    """Requests that were sent for it. The tokens are those of all of them."""


@dataclass
class Usage:
    """Requests that were sent, and the tokens of those that had a reply; what the others cost is unknown."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: Usage | Answer) -> None:
        """Count the tokens of an answer or of a failed reply."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out


class ChatModel(Protocol):
    """Answers chat messages. :class:`feature_db.chat.endpoint.Endpoint` and :class:`feature_db.chat.local.LocalModel` are two."""

    name: str
    """What records call it."""
    concurrency: int
    """Requests that it takes at once."""

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """The answer to a chat.

        Args:
            messages: the chat.
            max_tokens: most tokens of the answer.

        Raises:
            NoAnswer: there is no answer to this request; others may succeed.
            EndpointError: no request can succeed.
        """
        ...

    async def close(self) -> None:
        """Close connections. The model can be used again, in another event loop too."""
        ...


class NoAnswer(Exception):
    """There is no answer to one request.

    Args:
        reason: why, for people.
        again: whether the same request may succeed later.
        wait: seconds to wait before, if the model said so.
        limited: whether the model says that there were too many requests, so that all others should wait too.
        too_long: whether the chat is longer than the model can read.
        usage: what was spent on it.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = False,
        wait: float | None = None,
        limited: bool = False,
        too_long: bool = False,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait, self.limited, self.too_long = reason, again, wait, limited, too_long
        self.usage = usage or Usage()
        self.replied = False
        """Whether the model replied and may have to be paid, so that asking again is one of the tries of the question."""


class NoUsableReply(NoAnswer):
    """The model replied, and the reply holds no answer. See :class:`NoAnswer`."""

    def __init__(self, reason: str, *, again: bool = False, usage: Usage | None = None) -> None:
        super().__init__(reason, again=again, usage=usage)
        self.replied = True


def estimated_tokens(messages: Messages) -> int:
    """About how many tokens a chat has: one for four bytes of UTF-8, and eight for each message."""
    return sum(len(message["content"].encode("utf-8", "replace")) // 4 + 8 for message in messages)


def without_thoughts(text: str) -> str:
    """What a model says after its thoughts, where it writes them between <think> and </think>."""
    return _THOUGHT.sub("", text, count=1).strip()
