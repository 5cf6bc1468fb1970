"""The attention heads of a model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query

from saekit.serve.prompts import text_ids
from saekit.serve.rendering import page
from saekit.serve.state import OpenedHere, ServedHere
from saekit.views import charts
from saekit.views.charts import Scale
from saekit.views.heads import heads_view, pattern_view

if TYPE_CHECKING:
    from saekit.lm import LanguageModel

router = APIRouter(prefix="/w/{ws}")


@page(router, "/heads", "heads.html")
async def heads(
    opened: OpenedHere,
    served: ServedHere,
    text: Annotated[
        str, Query(max_length=2000, description="Scores are measured on it; empty: on random tokens given twice.")
    ] = "",
    sort: Annotated[str, Query(max_length=200, description="A column, in descending order.")] = "",
    head: Annotated[str, Query(max_length=40, description="The head whose pattern on the text is drawn: 3.5.")] = "",
    wait: Annotated[bool, Query(description="Wait for the model; else a page says that it is being loaded.")] = False,
) -> dict[str, Any]:
    """The scores of all attention heads, and where one of them looks on a text."""
    asked = {name: value for name, value in (("text", text), ("sort", sort), ("head", head)) if value}
    common = {"text": text, "sort": sort, "head": head, "url": f"/w/{opened.name}/heads"}
    if not wait and served.worker.state(opened.name) != "ready":
        return common | {"loading": f"/w/{opened.name}/heads?{urlencode(asked | {'wait': 'true'})}"}

    def view(lm: LanguageModel) -> dict[str, Any]:
        ids = list(text_ids(lm, text)) if text.strip() else []
        found = heads_view(opened.workspace, lm, ids, sort)
        return found | {"pattern": pattern_view(lm, ids, head) if head and ids else None}

    found = await asyncio.wrap_future(served.worker.call(opened.name, opened.workspace, view))
    for column in found["columns"]:
        column["url"] = "?" + urlencode(asked | {"sort": column["name"]})
    for row in found["rows"]:
        row["bench"] = f"/w/{opened.name}/bench?f={quote(row['ref'])}&op=ablate"
        row["url"] = "?" + urlencode(asked | {"head": row["ref"].removeprefix("head:")}) if text.strip() else None
    pattern = found["pattern"]
    drawn = pattern and charts.heat(
        pattern["pattern"],
        _numbered(pattern["tokens"]),
        _numbered(pattern["tokens"]),
        Scale("looked at"),
        Scale("from", down=True),
    )
    return common | found | {"loading": None, "maps": _maps(found), "pattern_chart": drawn}


def _maps(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A map of layers by heads for each column."""
    layers, heads_of = found["layers"], max(found["layers"], default=0)
    places = sorted({row["layer"] for row in found["rows"]})
    maps = []
    for column in found["columns"]:
        cells: list[list[float | None]] = [[None] * heads_of for _ in layers]
        for row in found["rows"]:
            cells[places.index(row["layer"])][row["head"]] = row["scores"][column["name"]]
        chart = charts.heat(cells, [str(n) for n in range(heads_of)], list(map(str, places)), Scale("head"), Scale("layer"))
        maps.append({"title": column["name"].replace("_", " "), "meaning": column["meaning"], "chart": chart})
    return maps


def _numbered(tokens: list[str]) -> list[str]:
    """Texts of tokens that differ, for axes."""
    return [f"{n} {token.strip() or '␣'}" for n, token in enumerate(tokens)]
