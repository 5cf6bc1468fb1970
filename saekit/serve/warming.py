"""Reads ahead, in the background, what the first requests would wait for: columns of the tables, labels, words, embeddings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from saekit.errors import SaekitError

if TYPE_CHECKING:
    from saekit.serve.state import Opened, Served

_log = logging.getLogger(__name__)
_AFTER = 0.5
"""Seconds that the first page has for itself."""


def steps(opened: Opened) -> Iterator[Callable[[], object]]:
    """What is read of a workspace, the most wanted first. Each step fills a cache that requests use."""
    if not opened.workspace.database_path.exists():
        return
    database = opened.database
    for sae in database.saes():
        for name in ("count", "kind", "density", "output_score", "input_score", "effect"):
            yield partial(database.column, sae.dictionary, name)
    yield partial(database.search, "the", k=1)
    for sae in database.saes():
        yield partial(database.ranks, sae.dictionary, "label")
        yield partial(database.column, sae.dictionary, "label_source")
        yield partial(database.map_of, sae.dictionary)


class Warming:
    """A thread that takes the steps of all workspaces, one after the other, until it is told to end.

    Args:
        served: whose workspaces are read.
        after: seconds to wait before the first step.
    """

    def __init__(self, served: Served, after: float = _AFTER) -> None:
        self._served, self._after = served, after
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warming", daemon=True)
        self.taken = 0
        """Steps that were taken."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def end(self) -> None:
        """Take no further step, and wait for the one that is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        self._ended.wait(self._after)
        for opened in self._served.workspaces.values():
            try:
                for step in steps(opened):
                    if self._ended.is_set():
                        return
                    step()
                    self.taken += 1
            except SaekitError as error:  # the page that needs it says so too
                _log.debug("%s was not read ahead: %s", opened.name, error.what)
