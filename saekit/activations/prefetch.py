"""Items made in a thread before they are needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Iterate over `items` in a thread that prepares at most `depth` of them in advance.

    The thread starts with the first `next` and ends when the iterator is exhausted or closed. The consumer receives the errors
    of `items`.
    """
    slots, results, stop = threading.Semaphore(depth), SimpleQueue[tuple[T | None, BaseException | None]](), threading.Event()

    def work() -> None:
        iterator = iter(items)
        try:
            while True:
                slots.acquire()
                if stop.is_set():
                    return
                results.put((next(iterator), None))
        except BaseException as error:  # including StopIteration, which ends the consumer, too
            results.put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, name="saekit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            slots.release()
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        slots.release()
        if not sys.is_finalizing():  # when the interpreter ends, the thread no longer runs and would never be joined
            thread.join()
