"""The form that lenses return: for every layer and position the tokens that come first, as a table or a heat map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from saekit import notebook
from saekit.locate.vocabulary.tokens import RankedToken


@dataclass(frozen=True)
class TokenGrid:
    """The top tokens at every site and position of one text.

    Attributes:
        kind: what was read, such as "logit" (a lens) or "backward".
        model: name of the model.
        tokens: the tokens of the text, as text, (T,).
        sites: names of the sites, from the first to the last, (L,).
        cells: `cells[l][t]` are the top tokens there, the first one first; none where there is nothing to read.
        shades: `shades[l][t]` from 0 to 1: the strength of the cell's colour.
        value: what the numbers of the cells are: "probability" or "logit".
        shade: what the colour shows, in words.
        facts: how it was obtained, as plain data.
    """

    kind: str
    model: str
    tokens: list[str]
    sites: list[str]
    cells: list[list[list[RankedToken]]]
    shades: list[list[float]]
    value: str = "probability"
    shade: str = "probability of the first token"
    facts: dict[str, Any] = field(default_factory=dict)

    def rows(self, position: int = -1) -> list[dict[str, Any]]:
        """A table of one position: a row for each site and rank.

        Args:
            position: of the text, negative from its end.
        """
        return [
            {"site": site, "rank": rank, "token": each.token, "id": each.id, self.value: each.value}
            for site, row in zip(self.sites, self.cells)
            for rank, each in enumerate(row[position], 1)
        ]

    def table(self) -> Iterator[dict[str, Any]]:
        """The first token of every cell: a row for each site, the last one first, and a column for each position."""
        names = [f"{t} {notebook.visible(token)}" for t, token in enumerate(self.tokens)]
        for site, row in reversed(list(zip(self.sites, self.cells))):
            shown = [f"{notebook.visible(cell[0].token)} {cell[0].value:.2f}" if cell else "" for cell in row]
            yield {"site": site, **dict(zip(names, shown))}

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        cells = [
            {
                "site": site,
                "position": t,
                "token": self.tokens[t],
                "shade": self.shades[n][t],
                "top": [{"token": each.token, "id": each.id, self.value: each.value} for each in cell],
            }
            for n, site in enumerate(self.sites)
            for t, cell in enumerate(self.cells[n])
        ]
        return {"kind": self.kind, "model": self.model, "tokens": self.tokens, "sites": self.sites, "cells": cells, **self.facts}

    def hover(self, layer: int, position: int) -> str:
        """The text that a cell shows when it is pointed at: its place, and its top tokens with their numbers."""
        place = f"{self.sites[layer]}, position {position} {notebook.visible(self.tokens[position])!r}"
        lines = [f"{each.value:.3f} {notebook.visible(each.token)!r}" for each in self.cells[layer][position]]
        return "\n".join([place, *lines])

    def _repr_html_(self) -> str:
        return notebook.block(notebook.table(list(self.table()), caption=f"{self.kind} lens of {self.model}"))
