"""Waiting: a limit on requests and tokens a minute, and repeated tries."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from feature_db.chat.model import Answer, ChatModel, Messages, NoAnswer, Usage, estimated_tokens
from saekit.errors import ConfigError, EndpointError
from saekit.progress import duration

_DOWN = 8  # faults in a row, over all requests, after which a request that is given up ends all
_LIMITED_TRIES = 4  # tries of a request that is told to wait, for each other try


@dataclass(frozen=True)
class Clock:
    """Where time comes from."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep


@dataclass
class _Sent:
    time: float
    tokens: int


class RateLimit:
    """Limits of requests and of estimated tokens in any span of a minute. Requests go in the order in which they came.

    Args:
        requests: a minute; None: any number.
        tokens: a minute, of questions and answers; None: any number. A request that alone has more waits until the minute before
            it is empty.
        seconds: the span.
        clock: where time comes from.

    Raises:
        ConfigError: a limit is no positive number.
    """

    def __init__(
        self, requests: int | None = None, tokens: int | None = None, *, seconds: float = 60.0, clock: Clock | None = None
    ) -> None:
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"{value} {name} a minute are too few.", "Give at least 1.")
        self._requests, self._tokens, self._seconds = requests, tokens, seconds
        self.clock = clock or Clock()
        self._sent: deque[_Sent] = deque()
        self._until = -float("inf")
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def turn(self, tokens: int) -> _Sent:
        """Wait until a request with this estimate of tokens may be sent; returns its record for :meth:`settle`."""
        async with self._lock():
            while (wait := self._wait(tokens)) > 0:
                await self.clock.sleep(wait)
            sent = _Sent(self.clock.now(), tokens)
            self._sent.append(sent)
            return sent

    def pause(self, seconds: float) -> None:
        """Let no request go for so long."""
        self._until = max(self._until, self.clock.now() + seconds)

    @staticmethod
    def settle(sent: _Sent, tokens: int) -> None:
        """Replace the estimate of a request by the number of tokens that it had."""
        sent.tokens = tokens

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()  # a lock belongs to one event loop, and this object may serve several in turn
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Lock()
        return self._turn[1]

    def _wait(self, tokens: int) -> float:
        now = self.clock.now()
        if now < self._until:
            return self._until - now
        while self._sent and self._sent[0].time <= now - self._seconds:
            self._sent.popleft()
        many = self._requests is not None and len(self._sent) >= self._requests
        large = self._tokens is not None and bool(self._sent) and sum(each.tokens for each in self._sent) + tokens > self._tokens
        # The small addition keeps rounding from ending the wait just before the oldest request leaves the span.
        return max(self._sent[0].time + self._seconds - now, 0.0) + 1e-6 if many or large else 0.0


@dataclass(frozen=True)
class Patience:
    """How often and how long a request is tried."""

    retries: int = 5
    """Tries after the first. A request that is told to wait is tried four times as often."""
    first: float = 1.0
    """Seconds before the first retry; they double with each, and a random part of up to half is taken off."""
    longest: float = 60.0
    """Seconds before a retry, where the endpoint does not say how long to wait."""
    most: float = 600.0
    """Most seconds that an endpoint may ask to wait (Retry-After); more is an error."""


class Patient:
    """A chat model whose requests wait for their turn, and are tried again after transient faults.

    Args:
        model: answers.
        limit: on its requests.
        patience: how often and how long they are tried.
        chance: random numbers from 0 to 1.
    """

    def __init__(
        self,
        model: ChatModel,
        limit: RateLimit | None = None,
        patience: Patience | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name, self.concurrency = model.name, model.concurrency
        self._faults = 0  # in a row, over all requests
        self._model, self._limit, self._patience, self._chance = model, limit or RateLimit(), patience or Patience(), chance

    async def answer(self, messages: Messages, max_tokens: int) -> Answer:
        """See :meth:`ChatModel.answer`.

        Raises:
            EndpointError: also where the endpoint asks to wait longer than `Patience.most`, or a request is given up after
                all requests have had nothing but transient faults for a while.
        """
        faults = limited = 0
        spent = Usage()
        while True:
            sent = await self._limit.turn(estimated_tokens(messages) + max_tokens)
            try:
                answer = await self._model.answer(messages, max_tokens)
            except NoAnswer as error:
                if own := error.usage.tokens_in + error.usage.tokens_out:
                    self._limit.settle(sent, own)
                spent.add(error.usage)
                error.usage = spent
                if error.replied or not error.again:
                    self._faults = 0
                    raise
                self._faults += 1
                faults, limited = faults + (not error.limited), limited + error.limited
                last = faults > self._patience.retries or limited > _LIMITED_TRIES * self._patience.retries
                if last:
                    self._give_up(error, faults + limited)
                    raise
                await self._rest(error, max(faults, limited))
                continue
            self._limit.settle(sent, answer.tokens_in + answer.tokens_out)
            self._faults = 0
            spent.add(answer)
            return replace(answer, requests=spent.requests, tokens_in=spent.tokens_in, tokens_out=spent.tokens_out)

    def _give_up(self, error: NoAnswer, own: int) -> None:
        """End all if other requests have had as many faults as this one, and nothing else."""
        if self._faults >= max(_DOWN, 2 * own):
            reason = f"The last {self._faults} requests to {self.name} had no answer ({error.reason})."
            hint = "Run the same command again when the endpoint answers: it goes on where it stopped."
            raise EndpointError(reason, hint) from error

    async def _rest(self, error: NoAnswer, tried: int) -> None:
        if error.wait is not None and error.wait > self._patience.most:
            raise EndpointError(
                f"{self.name} asks to wait {duration(error.wait)}: {error.reason}.", "Run the same command again after that time."
            )
        backoff = min(self._patience.first * 2.0 ** (tried - 1), self._patience.longest) * (1 - self._chance() / 2)
        if error.limited:
            self._limit.pause(error.wait or backoff)
        else:
            await self._limit.clock.sleep(max(error.wait or 0.0, backoff))

    async def close(self) -> None:
        """See :meth:`ChatModel.close`."""
        await self._model.close()
