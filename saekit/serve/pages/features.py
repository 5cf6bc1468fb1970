"""The features of a dictionary: as a table, as a scatter chart, and on a map of their decoder directions."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request

from saekit.serve.rendering import page
from saekit.serve.state import Opened, OpenedHere
from saekit.views.feature_table import PER_PAGE, Asked, chosen_dictionary, feature_map, feature_scatter, feature_table

router = APIRouter()


def _asked(request: Request) -> Asked:
    return Asked.read(dict(request.query_params))


AskedHere = Annotated[Asked, Depends(_asked)]


@page(router, "/w/{ws}/features", "features.html")
def features(opened: OpenedHere, asked: AskedHere) -> dict[str, Any]:
    """A page of the table. Fields: those of :class:`saekit.views.feature_table.Asked`."""
    view = feature_table(opened.database, asked)
    base = f"/w/{opened.name}/features"
    page, pages = view["page"], view["pages"]
    turned = {
        "previous": f"{base}?{urlencode(asked.fields(page=page - 1))}" if page > 1 else None,
        "next": f"{base}?{urlencode(asked.fields(page=page + 1))}" if page < pages else None,
    }
    sorts = {}
    for name in (*_UP, *_COLUMNS):
        down = not asked.down if name == asked.sort else name not in _UP
        sorts[name] = f"{base}?{urlencode(asked.fields(sort=name, down=down, page=1))}"
    return view | turned | {"sorts": sorts, "columns": list(_COLUMNS), "per_page": PER_PAGE, **_tabs(opened, asked)}


@page(router, "/w/{ws}/scatter", "scatter.html")
def scatter(opened: OpenedHere, asked: AskedHere) -> dict[str, Any]:
    """The features that pass the filters as points: column `x` against column `y`."""
    return feature_scatter(opened.database, asked, _link(opened, asked)) | _tabs(opened, asked)


@page(router, "/w/{ws}/map", "map.html")
def map_of_directions(opened: OpenedHere, asked: AskedHere) -> dict[str, Any]:
    """The features that pass the filters on a map of their decoder directions."""
    database = opened.database
    places, explained = database.map_of(chosen_dictionary(database, asked).dictionary)
    return feature_map(database, asked, _link(opened, asked), places) | {"explained": list(explained), **_tabs(opened, asked)}


_COLUMNS = ("density", "max", "mean", "label_score", "input_score", "output_score", "effect")
_UP = ("number", "label", "kind")


def _link(opened: Opened, asked: Asked) -> str:
    address = chosen_dictionary(opened.database, asked).dictionary
    return f"/w/{opened.name}/feature:{quote(address, safe=':@,+')}/"


def _tabs(opened: Opened, asked: Asked) -> dict[str, Any]:
    """The addresses of the three forms of the same features."""
    fields = urlencode(asked.fields(page=1))
    return {"tabs": {name: f"/w/{opened.name}/{name}{'?' if fields else ''}{fields}" for name in ("features", "scatter", "map")}}
