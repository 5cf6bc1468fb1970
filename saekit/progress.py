"""One progress bar for every long step, on stderr so that stdout stays data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A running count of units done."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, note: str = "") -> None:
        """Set the absolute count done so far, and a short note shown beside it."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)

    def end(self, done: int) -> None:
        """There were only `done` units after all."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=done)


@contextmanager
def track(what: str, total: int | None, *, unit: str = "tokens", enabled: bool = True) -> Iterator[Bar]:
    """Show `what` with a bar, a count, a rate, the time left and a note until the block ends.

    Args:
        what: a verb: "caching", "training".
        total: units in all, or None where nobody knows.
        unit: what is counted.
        enabled: False shows nothing and costs nothing.
    """
    if not enabled:
        yield Bar(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "?" if task.total is None else f"{int(task.total):,}"
            speed = f" {task.speed:,.0f}/s" if task.speed else ""
            return Text(f"{int(task.completed):,}/{total} {unit}{speed}", style="cyan", no_wrap=True)

    columns = (
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=12),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[note]}", table_column=Column(overflow="ellipsis", no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        task = progress.add_task(what, total=total, note="")
        yield Bar(progress, task)
