"""The page of causal tracing: a heat map of layers and tokens for each kind of restored state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.files import write_whole
from saekit.notebook import visible
from saekit.report.templates import environment

if TYPE_CHECKING:
    from saekit.locate.causal import Trace


def write_trace(traces: Sequence[Trace], path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        StorageFull, Unwritable: it cannot be written.
    """
    path = Path(path)
    write_whole(path, render_trace(traces))
    return path


def render_trace(traces: Sequence[Trace]) -> str:
    """The page as HTML. Every text of a model or a user is escaped."""
    maps = [{**facts, "rows": _rows(facts)} for facts in map(_facts, traces)]
    return environment().get_template("trace.html").render(maps=maps)


def _facts(trace: Trace) -> dict[str, Any]:
    obtained = trace.ranking.obtained
    return {**trace.to_dict(), "model": obtained["model"], "task": obtained["task"]}


def _rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The last layer first, as the residual stream is drawn."""
    largest = max((abs(value) for row in facts["effects"] for value in row if value is not None), default=0.0) or 1.0
    rows = []
    for layer, effects in reversed(list(zip(facts["layers"], facts["effects"]))):
        cells = [_cell(layer, column, value, largest) for column, value in zip(facts["columns"], effects)]
        rows.append({"layer": layer, "cells": cells})
    return rows


def _cell(layer: int, column: str, value: float | None, largest: float) -> dict[str, str]:
    if value is None:
        return {"text": "", "title": "", "shade": "0", "side": ""}
    title = f"layer {layer}, {visible(column)}: {value:.4g}"
    return {"text": f"{value:.2g}", "title": title, "shade": f"{abs(value) / largest:.3f}", "side": "minus" if value < 0 else ""}
