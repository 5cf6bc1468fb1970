"""Running many requests at once, with a bound, from code that knows nothing of event loops."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from saekit.errors import SaekitError

Item = TypeVar("Item")
Result = TypeVar("Result")


async def for_each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """Do `work` for each item, `at_once` of them at the same time, in the order of the items. The first error ends all of it.

    Raises:
        The error of `work`; a typed one before others.
    """
    todo = iter(items)

    async def worker() -> None:
        for item in todo:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise min(_leaves(errors), key=lambda error: not isinstance(error, SaekitError)) from errors


def _leaves(errors: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [leaf for each in errors.exceptions for leaf in (_leaves(each) if isinstance(each, BaseExceptionGroup) else [each])]


def complete(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end. In a notebook, where an event loop runs already, another thread does it.

    Raises:
        The error of the coroutine.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    found: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="saekit-chat")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


def stream(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], at_once: int, end: Callable[[], Awaitable[None]]
) -> Iterator[Result]:
    """What `work` gives for each item, as soon as it is known; `at_once` items are worked on in another thread.

    Args:
        items: are taken one by one, in that thread.
        work: what is done with an item.
        at_once: number of items at the same time.
        end: called after the last item, and where the caller stops early.

    Raises:
        The error of `work`, after the results that were known before.
    """
    found: queue.SimpleQueue[tuple[list[Result], BaseException | None, bool]] = queue.SimpleQueue()
    started: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = queue.SimpleQueue()

    async def put(item: Item) -> None:
        found.put(([await work(item)], None, False))

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.put((asyncio.get_running_loop(), task))
        try:
            await for_each(items, put, at_once)
        finally:
            await end()

    def go() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(run())
        except BaseException as raised:
            error = raised
        found.put(([], error, True))

    thread = threading.Thread(target=go, name="saekit-chat", daemon=True)
    thread.start()
    loop, task = started.get()
    try:
        while True:
            results, error, last = found.get()
            yield from results
            if error is not None:
                raise error
            if last:
                return
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
