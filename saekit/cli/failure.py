"""Message and exit status of a command that fails."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from typing import Any

from saekit import terminal
from saekit.cli import output
from saekit.errors import SaekitError
from saekit.files import is_full
from saekit.progress import activity


def fail(error: Exception, *, as_json: bool) -> int:
    """Print what went wrong, without a traceback.

    With `as_json`, the error is the document on stdout, unless the command has printed its own already.

    Returns:
        The exit status: 2 for an error of :mod:`saekit.errors`, 1 for any other, whose trace goes to a file.
    """
    facts: dict[str, Any] = output.error_facts(error) if isinstance(error, SaekitError) else _unexpected(error)
    if as_json and not output.answered():
        output.emit(facts)
    from rich.text import Text

    message = Text.assemble(("error: ", "bold red"), terminal.clean(facts["message"]))
    if facts["hint"]:
        message.append(f"\n  {terminal.clean(facts['hint'])}", style="yellow")
    sys.stdout.flush()
    terminal.console(stderr=True, soft_wrap=True).print(message)
    return 2 if isinstance(error, SaekitError) else 1


def _unexpected(error: Exception) -> dict[str, Any]:
    """The JSON object of an unexpected error. Writes the traceback to a file."""
    trace = write_trace(error)
    reason = " ".join(traceback.format_exception_only(error)[-1].split())
    hints = []
    if is_full(error):
        hints.append("The disk is full: free some space and run the same command again.")
    elif "out of memory" in reason.lower() or isinstance(error, MemoryError):
        hints.append("Out of memory: use smaller batches, a shorter context or a smaller model.")
    else:
        hints.append("This is a bug in saekit or in a library. Please report it.")
    hints.append("The traceback could not be written." if trace is None else f"The traceback is in {trace}.")
    return {
        "error": "InternalError",
        "message": f"An unexpected error while {activity(error) or 'running saekit'}: {reason}",
        "hint": " ".join(hints),
        "trace": trace,
    }


def write_trace(error: BaseException) -> str | None:
    """Write the traceback of an error to a new file that only the user can read. Returns None if that fails."""
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="saekit-trace-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
        return name
    return None
