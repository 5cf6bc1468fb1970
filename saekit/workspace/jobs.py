"""The commands that write to a workspace now, or were stopped while they did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from saekit.locks import Holder, lock_state

LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """A command that holds, or held, a workspace for writing."""

    state: Literal["running", "stopped", "unknown"]
    """`unknown`: it was started on another machine, and the file system has no locks that would tell whether it still runs."""
    holder: Holder | None
    """The process; None where its record cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: state, command, folder, host, pid, since."""
        if self.holder is None:
            return {"state": self.state, **dict.fromkeys(("command", "folder", "host", "pid", "since"))}
        facts = {name: getattr(self.holder, name) for name in ("command", "folder", "host", "pid")}
        return {"state": self.state, **facts, "since": when(self.holder.since)}


def current(root: Path) -> Job | None:
    """The command that holds the workspace in `root`, or the last one if it was stopped; None where there is no such command."""
    state, holder = lock_state(root / LOCK)
    if state == "free":
        return None if holder is None else Job("stopped", holder)
    return Job("running" if state == "held" else "unknown", holder)


def when(seconds: float) -> str | None:
    """A Unix time as local time in ISO 8601; None for one that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return None
