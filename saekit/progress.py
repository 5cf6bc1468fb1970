"""Progress of long steps, on stderr so that stdout stays data: a bar on a terminal, a line every 30 seconds elsewhere.

The same blocks record what the program is doing, for the message about an unexpected error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 30.0
"""Seconds between lines where stderr is not a terminal, as in the log of a batch queue."""
_WORTH_A_RATE = 1000  # units in all; for fewer, a rate like "0/s" says nothing


class Bar:
    """A running count of the units that are done."""

    def update(self, done: int, note: str = "") -> None:
        """Set the absolute count of units done so far, and a short note that is shown after it."""

    def end(self, done: int) -> None:
        """Set the total to `done`: there are fewer units than was thought."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what the block does. An exception that leaves it is marked with the name, for :func:`activity`."""
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "_saekit_activity"):  # the innermost block knows best
            error._saekit_activity = what  # type: ignore[attr-defined]
        raise


def activity(error: BaseException) -> str | None:
    """What was being done when `error` was raised: "training resid_post.2"."""
    return getattr(error, "_saekit_activity", None)


@contextmanager
def track(what: str, total: int | None, *, unit: str = "tokens", subject: str = "", enabled: bool = True) -> Iterator[Bar]:
    """Show `what` with a count, a rate, the time left and a note until the block ends.

    Args:
        what: a verb: "caching", "training".
        total: units in all, or None where the number is unknown.
        unit: what is counted.
        subject: what the verb is about: "resid_post.2". Shown in error messages.
        enabled: False shows nothing.
    """
    with doing(f"{what} {subject}".rstrip()):
        if not enabled:
            yield Bar()
            return
        from saekit.terminal import console

        screen = console(stderr=True)
        if screen.is_terminal:
            with _bar(screen, what, total, unit) as bar:
                yield bar
        else:
            with _Lines(what, total, unit) as lines:
                yield lines


class _Lines(Bar):
    """Lines of text: one at the start, one every :data:`EVERY` seconds, one at the end."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._note, self._started = 0, "", time.monotonic()
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="saekit-progress", daemon=True)

    def __enter__(self) -> _Lines:
        self._print(self._what)
        self._clock.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        if kind is None:
            self._print(self._line())

    def update(self, done: int, note: str = "") -> None:
        self._done, self._note = done, note

    def end(self, done: int) -> None:
        self._done = self._total = done

    def _tick(self) -> None:
        while not self._ended.wait(EVERY):
            with suppress(OSError):  # the reader of the lines has gone
                self._print(self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        speed = self._done / seconds if seconds > 0 else 0.0
        parts = [count(self._done, self._total, self._unit, speed)]
        if self._total and 0 < self._done < self._total:
            parts.append(f"{self._done / self._total:.0%}, {duration((self._total - self._done) / speed)} left")
        else:
            parts.append(duration(seconds))
        return ", ".join(filter(None, (f"{self._what}: {parts[0]}", parts[1], self._note)))

    def _print(self, text: str) -> None:
        from saekit.terminal import write_line

        write_line(text, stderr=True)


def count(done: int, total: int | None, unit: str, speed: float | None) -> str:
    """The units done, and the rate where there are enough units to speak of one: "12,000/60,000 tokens 4,000/s"."""
    text = f"{done:,} {unit}" if total is None else f"{done:,}/{total:,} {unit}"
    rate = speed is not None and speed >= 1 and (total or done) >= _WORTH_A_RATE
    return f"{text} {speed:,.0f}/s" if rate else text


def duration(seconds: float) -> str:
    """A length of time as a person would write it: 42 s, 3 min, 1 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _bar(screen: object, what: str, total: int | None, unit: str) -> Iterator[Bar]:
    """A bar that rich redraws in place."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            text = count(int(task.completed), None if task.total is None else int(task.total), unit, task.speed)
            return Text(text, style="cyan", no_wrap=True)

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = task.elapsed if task.finished else task.time_remaining
            return Text("" if left is None else duration(left), style="progress.remaining", no_wrap=True)

    class Shown(Bar):
        def __init__(self, progress: Progress, task: TaskID) -> None:
            self._progress, self._task = progress, task

        def update(self, done: int, note: str = "") -> None:
            self._progress.update(self._task, completed=done, note=clean(note))

        def end(self, done: int) -> None:
            self._progress.update(self._task, completed=done, total=done)

    from saekit.terminal import clean

    assert isinstance(screen, Console)
    columns = (
        TextColumn("{task.description:<9}", style="bold", markup=False),
        BarColumn(bar_width=12),
        Count(),
        TimeLeft(),
        TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
    )
    with Progress(*columns, console=screen, refresh_per_second=4) as progress:
        yield Shown(progress, progress.add_task(what, total=total, note=""))
