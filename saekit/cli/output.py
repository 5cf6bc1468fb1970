"""Output of commands: tables or JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from saekit.errors import shown_path
from saekit.files import document
from saekit.terminal import clean, console, json_safe, write_line

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from saekit.errors import SaekitError
    from saekit.evaluate.report import Section


_answered = False


@contextmanager
def answer() -> Iterator[None]:
    """A context for one command, which prints at most one JSON document; see :func:`answered`."""
    global _answered
    _answered = False
    yield


def answered() -> bool:
    """Whether the command has printed its JSON document."""
    return _answered


def text(*parts: str | tuple[str, str]) -> Text:
    """A line of plain and (text, style) parts, without control characters; brackets in them mean nothing."""
    from rich.text import Text

    return Text.assemble(*(clean(part) if isinstance(part, str) else (clean(part[0]), part[1]) for part in parts))


def say(*parts: str | tuple[str, str]) -> None:
    """Print one line of plain and (text, style) parts; see :func:`text`."""
    console().print(text(*parts))


def say_line(*parts: str | tuple[str, str]) -> None:
    """Print one line that is not broken at the edge of the terminal, so that it can be copied; see :func:`text`."""
    console(soft_wrap=True).print(text(*parts))


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    write_line(f"warning: {sentence}", stderr=True)


def say_path(label: str, path: Path) -> None:
    """Print a path on a line of its own, relative to the current folder if that is shorter. It is not broken at the edge."""
    say_line(label, (shown_path(path), "bold"))


def emit(data: Any) -> None:
    """Print `data` as one JSON document."""
    global _answered
    _answered = True
    sys.stdout.write(json_safe(document(data), sys.stdout.encoding) + "\n")


def error_facts(error: SaekitError) -> dict[str, str | None]:
    """An error as a JSON object."""
    return {"error": type(error).__name__, "message": error.what, "hint": error.hint}


def quiet_libraries() -> None:
    """Turn off the progress bars and notices of libraries."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns on import that an optional package is missing
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)


def table(rows: list[dict[str, Any]], *, title: str | None = None, whole: str | None = None) -> None:
    """Print rows that share their keys. The column `whole` is not broken, so that names in it can be copied."""
    from rich import box
    from rich.table import Table

    if not rows:
        say(("nothing found", "dim"))
        return
    if title:
        say((title, "italic"))  # a title of the table would be wrapped to its width
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        justify: Literal["left", "right"] = "right" if isinstance(value, int | float) else "left"
        grid.add_column(clean(name), justify=justify, overflow="fold", no_wrap=name == whole)
    for row in rows:
        grid.add_row(*(text(_cell(value)) for value in row.values()))
    console().print(grid)


def _cell(value: Any) -> str:
    """A value as a table shows it; nothing for None."""
    if value is None:
        return ""
    return number(value) if isinstance(value, int | float) else str(value)


def print_section(section: Section) -> None:
    """Print the report of an evaluation: a table, and sentences below it."""
    table(section.rows, title=section.title)
    for sentence in section.summary:
        say(sentence)


_BARS = "▁▂▃▄▅▆▇█"


def bar(count: int, most: int) -> str:
    """A column of a histogram in one character."""
    return _BARS[max(0, -(-count * len(_BARS) // most) - 1)] if count else "·"


def number(value: float) -> str:
    """A number in a readable form."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def size(count: int) -> str:
    """A number of bytes in a readable form: 25.6 MB."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if value >= 99.5 or units[0] == "bytes" else f"{value:.3g} {units[0]}"


def highlighted(tokens: list[str], values: list[float], peak: float, width: int) -> Text:
    """One line of text around the token with the largest activation. The background of a token shows its activation.

    Tokens that are one character together are shown as that character, with the activation of the strongest.
    """
    from rich.text import Text

    from saekit.pieces import joined

    pieces = joined(tokens, values)
    values = [piece.value for piece in pieces]
    shown = [clean(piece.text.replace("\n", "↵")) for piece in pieces]
    start = stop = max(range(len(values)), key=values.__getitem__)
    room = width - len(shown[start])
    # Add tokens on both sides in turn while there is room.
    while True:
        before = start > 0 and len(shown[start - 1]) <= room
        if before:
            start -= 1
            room -= len(shown[start])
        after = stop + 1 < len(shown) and len(shown[stop + 1]) <= room
        if after:
            stop += 1
            room -= len(shown[stop])
        if not (before or after):
            break
    text = Text(no_wrap=True)
    for token, value in zip(shown[start : stop + 1], values[start : stop + 1]):
        share = min(1.0, value / peak) if peak > 0 else 0.0
        shade = int(235 - 150 * share)
        text.append(token, style=f"{'bold ' if share > 0.5 else ''}black on rgb({shade},235,{shade})" if value > 0 else "")
    return text
