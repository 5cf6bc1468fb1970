"""How commands speak: tables or JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from saekit.errors import SaekitError


def console() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def emit(data: Any) -> None:
    """Print `data` as one JSON document."""
    print(json.dumps(data, ensure_ascii=False, indent=2))


def fail(error: SaekitError, *, as_json: bool) -> int:
    """Say what went wrong, without a traceback; returns the exit status."""
    from rich.console import Console
    from rich.text import Text

    if as_json:
        emit({"error": type(error).__name__, "message": error.what, "hint": error.hint})
    message = Text.assemble(("error: ", "bold red"), error.what)
    if error.hint:
        message.append(f"\n  {error.hint}", style="yellow")
    Console(stderr=True, soft_wrap=True).print(message)
    return 2


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notices out of a command's output."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)


def table(rows: list[dict[str, Any]], *, title: str | None = None) -> None:
    """Print rows that share their keys."""
    from rich import box
    from rich.table import Table

    if not rows:
        console().print("[dim]nothing found[/dim]")
        return
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        grid.add_column(name, justify="right" if isinstance(value, (int, float)) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(value if not isinstance(value, (int, float)) else number(value) for value in row.values()))
    console().print(grid)


def print_quality(site: str, metrics: dict[str, float]) -> None:
    """Print the quality of a dictionary as a person would report it."""
    recovered = f"{metrics['ce']:.3f} as it is, {metrics['ce_spliced']:.3f} spliced in, {metrics['ce_zero']:.3f} at zero"
    lines = [
        ("variance unexplained (FVU)", f"{metrics['fvu']:.4f}", f"on {metrics['heldout_tokens']:,} held-out tokens"),
        ("features active (L0)", number(metrics["l0"]), "per token"),
        ("dead features", f"{metrics['dead_fraction']:.2%}", "fire on no cached token"),
        ("cross-entropy recovered", f"{metrics['ce_recovered']:.2%}", recovered),
        ("KL when spliced in", f"{metrics['kl']:.4f}", "nats a token"),
    ]
    console().print(f"dictionary at [bold]{site}[/bold]")
    for name, value, note in lines:
        console().print(f"  {name:<27} {value:>8}  [dim]{note}[/dim]")


def number(value: float) -> str:
    """A number as a person would write it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def highlighted(tokens: list[str], values: list[float], peak: float, width: int) -> Text:
    """One line of text around the strongest token; the background of a token is as strong as the feature fires on it."""
    from rich.text import Text

    shown = [token.replace("\n", "↵") for token in tokens]
    start = stop = max(range(len(values)), key=values.__getitem__)
    room = width - len(shown[start])
    # Grow to both sides by turns, while there is room.
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
