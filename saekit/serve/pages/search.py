"""The page of searches."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request

from saekit.serve.rendering import page
from saekit.serve.state import OpenedHere
from saekit.views.search_page import Query, search_page

router = APIRouter()


def _query(request: Request) -> Query:
    return Query.read(dict(request.query_params))


@page(router, "/w/{ws}/search", "search.html")
def search(opened: OpenedHere, query: Annotated[Query, Depends(_query)]) -> dict[str, Any]:
    """Features by concept, by what they fire on, promote or cause, by their labels, or like another one.

    Fields: those of :class:`saekit.views.search_page.Query`.
    """
    view = search_page(opened.database, query)
    fields = {name: value for name, value in view["asked"].items() if value != getattr(Query(), name)}
    base = f"/w/{opened.name}/search"
    return view | {
        "previous": f"{base}?{urlencode(fields | {'page': query.page - 1})}" if query.page > 1 else None,
        "next": f"{base}?{urlencode(fields | {'page': query.page + 1})}" if view["more"] else None,
    }
