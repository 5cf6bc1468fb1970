"""What the model worker sends to one client: events in order, for a thread or an event loop, until the client goes away."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Likely:
    """A token that may come next."""

    id: int
    text: str
    logprob: float
    """Log-probability under the steered model before temperature and top_p, in nats."""


@dataclass(frozen=True)
class Begun:
    """The generation of a job begins.

    Attributes:
        prompts: the token ids of the prompt of each row.
        texts: the prompt of each row as text.
        scored: for each row the tokens of its prompt with their log-probabilities, where they were asked for. The first token
            has none (NaN), because nothing comes before it.
    """

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    scored: tuple[tuple[Token, ...], ...]


@dataclass(frozen=True)
class Token:
    """One token of one row.

    Attributes:
        row: number of the row within the job.
        text: what the token adds to the text. Empty while a character is incomplete or a stop sequence may be beginning; a
            later token, or the end of the row, then has the text.
        chosen: the token by itself, with its log-probability; None if none was asked for and it was not scored.
        top: the likeliest tokens, if asked for.
    """

    row: int
    text: str
    id: int
    chosen: Likely | None = None
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class End:
    """A row ends, at a stop sequence or end-of-text token ("stop") or at its most tokens ("length")."""

    row: int
    reason: Reason
    text: str = ""
    """Text that was held back."""
    id: int | None = None
    """The end-of-text token that ended the row."""


Event = Begun | Token | End


class Stream:
    """Events from the worker to one client. The worker calls `put`, `fail` and `finish`; the client iterates, then closes."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._finished = False
        self._closed = False
        self._waker: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # The worker's side

    @property
    def closed(self) -> bool:
        """Whether the client has gone away."""
        return self._closed

    def put(self, event: Event) -> None:
        """Send one event."""
        with self._changed:
            self._events.append(event)
            self._wake()

    def fail(self, error: Exception) -> None:
        """End with an error, which the client's iteration raises after the events that were sent."""
        with self._changed:
            self._error, self._finished = error, True
            self._wake()

    def finish(self) -> None:
        """End."""
        with self._changed:
            self._finished = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waker is not None:
            loop, event = self._waker
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    # The client's side

    def close(self) -> None:
        """The client goes away: a waiting job is dropped, and a running one stops at its next token."""
        with self._changed:
            self._closed = True
            self._events.clear()
            self._wake()

    def _next(self) -> Event | None:
        """The next event, or None if there is none yet. The caller holds the condition.

        Raises:
            StopIteration: the stream has ended.
            Exception: the error that it ended with.
        """
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        if self._finished or self._closed:
            raise StopIteration
        return None

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                try:
                    while (event := self._next()) is None:
                        self._changed.wait()
                except StopIteration:
                    return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        awake = asyncio.Event()
        with self._changed:
            self._waker = asyncio.get_running_loop(), awake
        while True:
            awake.clear()
            with self._changed:
                try:
                    event = self._next()
                except StopIteration:
                    return
            if event is None:
                await awake.wait()
            else:
                yield event
