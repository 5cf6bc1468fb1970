"""Text on its way to a terminal: control characters become signs, and what the encoding lacks is replaced.

Texts of corpora, tokens, labels, names of models and files, and error messages may hold control characters. A terminal would act
on them: move the cursor, change its title, paste text. All output of the command line goes through :func:`clean`.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 controls but newline and tab, DEL, C1 controls, bidirectional overrides and isolates, line separators, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7e]")


def clean(text: str) -> str:
    """`text` with a visible sign in place of each character that a terminal would act on.

    A sign is ␛ for escape, or \\u202e for an override of the writing direction. Line breaks and tabs stay.
    """
    return _UNSAFE.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures of Unicode
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_safe(text: str, encoding: str | None = None) -> str:
    """A JSON document with the same data, in which the characters that :func:`clean` replaces are escaped as `\\uXXXX`.

    Args:
        text: a JSON document.
        encoding: of the stream that it is written to; one that is not a form of Unicode gets ASCII only.
    """
    unicode = (encoding or "utf-8").lower().startswith("utf")
    return (_JSON_UNSAFE if unicode else _NOT_ASCII).sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console on which plain text stays plain text: no markup, no highlighting, no control characters.

    Args:
        stderr: whether it writes to stderr, as progress and errors do.
        options: of :class:`rich.console.Console`.
    """
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        def _render_buffer(self, buffer: Any) -> str:
            safe = (each if each.control else Segment(clean(each.text), each.style) for each in buffer)
            return super()._render_buffer(safe)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False, **options)


def write_line(text: str, *, stderr: bool = False) -> None:
    """Write one line of plain text."""
    stream = sys.stderr if stderr else sys.stdout
    stream.write(clean(text) + "\n")
    stream.flush()


def prepare_streams() -> None:
    """Make stdout and stderr take any text: a question mark stands for a character that their encoding lacks.

    Where one of them is closed, as by the shell's `2>&-`, what is written to it is discarded.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (it stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_output(stream: TextIO) -> None:
    """Send what is still written to a stream whose reader has gone to nowhere, so that the interpreter can end silently."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
