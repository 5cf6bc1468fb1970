"""HTML of small tables for notebooks, which show an object by its `_repr_html_`.

Texts of corpora, tokens and labels are escaped, and their control characters are made visible: none can add to the page. Styles
are inline and take their colours from the page, because notebooks drop style sheets and may be dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from saekit.pieces import joined
from saekit.terminal import clean

_CELL = "text-align:left;vertical-align:top;padding:.25em .75em;white-space:normal"
_NUMBER = "text-align:right;vertical-align:top;padding:.25em .75em;font-variant-numeric:tabular-nums"
_QUIET = "opacity:.7;font-size:.9em"
_HEAT = "255,166,0"
_LONGEST = 600


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def visible(token: str) -> str:
    """A token in running text: line breaks become ↵, other control characters as in :func:`saekit.terminal.clean`."""
    return clean(token.replace("\r\n", "\n").replace("\n", "↵"))


def text(value: object) -> Html:
    """A value as escaped text; numbers with few digits."""
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return Html(f"{value:,}")
    return Html(escape(visible("" if value is None else str(value))))


def shortened(value: str, longest: int = _LONGEST) -> str:
    """A text, cut where it is longer than `longest` characters."""
    return value if len(value) <= longest else value[:longest] + "…"


def table(rows: Sequence[Mapping[str, Any]], *, caption: str = "") -> Html:
    """Rows that share their keys; numbers stand on the right."""
    if not rows:
        return Html(f'<p style="{_QUIET}">nothing found</p>')
    numbers = {name for name, value in rows[0].items() if isinstance(value, int | float) and not isinstance(value, bool)}
    style = {name: _NUMBER if name in numbers else _CELL for name in rows[0]}
    head = "".join(f'<th style="{style[name]}">{text(name)}</th>' for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f'<td style="{style.get(name, _CELL)}">{text(value)}</td>' for name, value in row.items()) + "</tr>"
        for row in rows
    )
    title = f'<caption style="caption-side:top;text-align:left;font-weight:bold">{text(caption)}</caption>' if caption else ""
    return Html(f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def shaded(tokens: Sequence[str], values: Sequence[float], largest: float) -> Html:
    """Running text in which the background of a token shows its activation, and pointing at it the value.

    Args:
        tokens: texts of tokens; pieces of one character are joined.
        values: activation at each.
        largest: the activation with the strongest colour.
    """
    parts = []
    for piece in joined(tokens, values):
        shown = text(piece.text)
        if piece.value > 0:
            share = min(piece.value / largest, 1.0) if largest > 0 else 0.0
            style = f"background:rgba({_HEAT},{0.15 + 0.75 * share:.2f});border-radius:.2em"
            shown = Html(f'<span style="{style}" title="{piece.value:.4g}">{shown}</span>')
        parts.append(shown)
    return Html(f'<span style="white-space:pre-wrap">{"".join(parts)}</span>')


def line(*parts: object) -> Html:
    """A paragraph of parts, each escaped unless it is HTML."""
    return Html(f'<p style="margin:.3em 0">{" ".join(map(text, parts))}</p>')


def strong(value: object) -> Html:
    """A value in bold."""
    return Html(f"<b>{text(value)}</b>")


def quiet(value: object) -> Html:
    """A value in a weaker colour."""
    return Html(f'<span style="{_QUIET}">{text(value)}</span>')


def chips(values: Iterable[object]) -> Html:
    """Short texts, each in a frame."""
    style = "border:1px solid rgba(128,128,128,.4);border-radius:.4em;padding:0 .35em;margin-right:.3em;white-space:pre"
    return Html(" ".join(f'<code style="{style}">{text(value)}</code>' for value in values))


def block(*parts: Html) -> str:
    """The whole output of one object."""
    return f"<div>{''.join(parts)}</div>"
