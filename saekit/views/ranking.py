"""Rankings: what `saekit locate` prints, and what its page shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from saekit.errors import shown
from saekit.names.edge import Edge
from saekit.names.ref import Ref
from saekit.tasks import Ranking
from saekit.views import charts
from saekit.views.charts import Scale

_HEADS = ("head", "q", "k", "v", "pattern")
_MOST = 4000
"""Cells of the largest heat map that is drawn."""


def ranking_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """One row for each object: ref, score, low, high, method, n, confirmed, and evidence where there is any."""
    obtained = ranking.obtained
    rows = []
    for i, (ref, score) in enumerate(zip(ranking.refs, ranking.scores)):
        low, high = ranking.intervals[i] if ranking.intervals else (None, None)
        row = {
            "ref": str(ref),
            "score": score,
            "low": low,
            "high": high,
            "method": obtained.get("method"),
            "n": obtained.get("n"),
        }
        row["confirmed"] = ranking.confirmed[i] if ranking.confirmed else None
        if ranking.evidence:
            row["evidence"] = {name: scores[i] for name, scores in ranking.evidence.items()}
        rows.append(row)
    return rows


def ranking_view(ranking: Ranking, top: int) -> dict[str, Any]:
    """A ranking as plain data for a page.

    Returns:
        title; facts: (name, text) of how it was obtained; rows: the first `top` objects; objects: how many there are; intervals,
        confirmed: whether rows have them; agreement: of methods in pairs; maps: rows of `title` and `chart`, see
        :func:`heat_maps`.
    """
    obtained = ranking.obtained
    hidden = ("fingerprint", "agreement", "methods", "method")
    facts = [(name, shown(value)) for name, value in obtained.items() if name not in hidden and value not in (None, [])]
    methods = obtained.get("methods")
    return {
        "title": " ".join(
            filter(None, (str(obtained.get("method", "")), shown(obtained.get("task")) if obtained.get("task") else ""))
        ),
        "model": shown(obtained.get("model")),
        "facts": [(name, text) for name, text in facts if name != "model"],
        "rows": ranking_rows(ranking.top(top)),
        "objects": len(ranking),
        "intervals": bool(ranking.intervals),
        "confirmed": any(effect is not None for effect in ranking.confirmed or ()),
        "methods": methods if isinstance(methods, Mapping) else {},
        "agreement": obtained.get("agreement") or [],
        "maps": [
            {
                "title": each["title"],
                "chart": charts.heat(each["cells"], each["columns"], each["rows"], Scale(each["x_label"]), Scale("layer")),
            }
            for each in heat_maps(ranking)
        ],
    }


def heat_maps(ranking: Ranking) -> list[dict[str, Any]]:
    """Layers by heads, and layers by positions, where the refs have these.

    Returns:
        For each kind of object: title, x_label, rows and columns (texts), and cells: values by (row, column), None where there is
        no object. Maps of more than 4000 cells are left out.
    """
    grids: dict[str, dict[tuple[str, str], float]] = {}
    for ref, score in ranking.items():
        if isinstance(ref, Edge) or score != score:
            continue
        for title, place in _places(ref):
            cells = grids.setdefault(title, {})
            if place not in cells or abs(score) > abs(cells[place]):
                cells[place] = score
    found = []
    for title, cells in grids.items():
        rows, columns = (sorted({place[i] for place in cells}, key=_natural) for i in (0, 1))
        if len(cells) > 1 and len(columns) > 1 and len(rows) * len(columns) <= _MOST:
            values = [[cells.get((row, column)) for column in columns] for row in rows]
            axis = "head" if title.endswith("head") else "position"
            found.append({"title": title, "x_label": axis, "rows": rows, "columns": columns, "cells": values})
    return found


def _places(ref: Ref) -> list[tuple[str, tuple[str, str]]]:
    """(title of the map, (row, column)) of the maps that an object stands in."""
    row = str(ref.site.kind if ref.site is not None and ref.layer is None else ref.layer)
    places = []
    if ref.kind in _HEADS and ref.key is None:
        places.append((f"{ref.kind} by layer and head", (row, str(ref.unit))))
    if ref.position is not None and ref.kind != "pattern":
        where = f" of {ref.site.kind}" if ref.kind == "site" and ref.site is not None else ""
        places.append((f"{ref.kind}{where} by layer and position", (row, ref.position)))
    return places


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in texts as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
