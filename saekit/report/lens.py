"""The page of a lens: a heat map of layers and positions, and tables below it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.files import write_whole
from saekit.notebook import visible
from saekit.report.templates import environment

if TYPE_CHECKING:
    from saekit.locate.vocabulary import TokenGrid

_INTRODUCTIONS = {
    "logit": "Each cell shows what the model would say next if it stopped after that layer.",
    "tuned": "Each cell shows what an affine map, trained for that layer, predicts that the model will say next.",
    "jacobian": "Each cell shows what the residual stream at that layer tends to make the model say, now or later.",
    "backward": "Each cell shows the tokens that the gradient spells: what a small step along it would write there.",
}


def write_lens(grid: TokenGrid, text: str, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Args:
        grid: what was read.
        text: the text that was read, for the page's head.
        path: the file.

    Raises:
        StorageFull: there is no room.
    """
    path = Path(path)
    write_whole(path, render_lens(grid, text))
    return path


def render_lens(grid: TokenGrid, text: str) -> str:
    """The page as HTML. Every text of a model or a user is escaped."""
    columns = [{"position": t, "token": visible(token)} for t, token in enumerate(grid.tokens)]
    sites = list(reversed(range(len(grid.sites))))
    rows = [{"site": grid.sites[n], "cells": [_cell(grid, n, t) for t in range(len(columns))]} for n in sites]
    tables = [{**column, "rows": list(_table(grid, t))} for t, column in enumerate(columns)]
    template = environment().get_template("lens.html")
    introduction = _INTRODUCTIONS.get(grid.kind, "Each cell shows the tokens that come first at that layer and position.")
    return template.render(grid=grid, text=text, introduction=introduction, columns=columns, rows=rows, tables=tables)


def _cell(grid: TokenGrid, layer: int, position: int) -> dict[str, Any]:
    """What a cell shows: its first token, the number of it, all its tokens when pointed at, and the strength of its colour."""
    cell = grid.cells[layer][position]
    return {
        "token": visible(cell[0].token) if cell else "",
        "number": f"{cell[0].value:.2f}" if cell else "",
        "title": grid.hover(layer, position),
        "shade": f"{grid.shades[layer][position]:.3f}",
    }


def _table(grid: TokenGrid, position: int) -> Iterator[dict[str, str]]:
    """The tokens at each layer of one position, the last layer first."""
    for site, row in reversed(list(zip(grid.sites, grid.cells))):
        tokens = [f"{visible(each.token)!r} {each.value:.3f}" for each in row[position]]
        yield {"site": site, "tokens": "   ".join(tokens)}
