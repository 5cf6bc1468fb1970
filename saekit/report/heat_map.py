"""Heat maps as inline SVG; see :mod:`saekit.report.charts` for why charts are drawings without scripts."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from saekit.report.charts import short

_CELL, _LEFT, _TOP, _BOTTOM = 24, 64, 6, 34
_NARROW = 8


def heat_map(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float | None]], *, x_label: str, y_label: str = "layer"
) -> Markup:
    """Cells whose colour is the sign of a value, and whose strength its size relative to the largest one.

    Args:
        rows: names of the rows, drawn from the bottom up, as the layers of a model are.
        columns: names of the columns.
        cells: values, None where there is nothing to draw.
        x_label: what the columns are.
        y_label: what the rows are.
    """
    largest = max((abs(value) for row in cells for value in row if value is not None), default=0.0) or 1.0
    width = max(_NARROW, min(_CELL, 960 // max(1, len(columns))))
    parts = []
    for i, (name, row) in enumerate(zip(rows, cells)):
        y = _TOP + _CELL * (len(rows) - 1 - i)
        parts.append(Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(_LEFT - 5, y + _CELL / 2 + 3.5, name))
        for j, value in enumerate(row):
            if value is not None:
                title = f"{y_label} {name}, {x_label} {columns[j]}: {value:.4g}"
                parts.append(_cell(_LEFT + width * j, y, width, value / largest, title))
    bottom = _TOP + _CELL * len(rows)
    step = -(-34 // width) if any(len(name) > 2 for name in columns) else -(-16 // width)
    for j, name in list(enumerate(columns))[::step]:
        x = _LEFT + width * (j + 0.5)
        parts.append(Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(x, bottom + 13, name))
    across = _LEFT + width * len(columns)
    parts.append(Markup('<text class="name middle" x="{}" y="{}">{}</text>').format((_LEFT + across) / 2, bottom + 28, x_label))
    said = f"{y_label} by {x_label}: {len(rows)} by {len(columns)} values, the largest {short(largest)}"
    drawing = Markup("").join(parts)
    return Markup('<svg class="chart map" viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">{}</svg>').format(
        across + 10, bottom + _BOTTOM, across + 10, said, drawing
    )


def _cell(x: float, y: float, width: float, share: float, title: str) -> Markup:
    style = "cell" if share >= 0 else "cell minus"
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>').format(
        style, x, y, width - 1, _CELL - 1, round(0.04 + 0.96 * abs(share), 3), title
    )
