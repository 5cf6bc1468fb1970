"""The page of searches."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from saekit.serve.pages.live import searched_by_text
from saekit.serve.rendering import page
from saekit.serve.state import OpenedHere, ServedHere
from saekit.views.search_page import Query, search_page

router = APIRouter()


def _query(request: Request) -> Query:
    return Query.read(dict(request.query_params))


@page(router, "/w/{ws}/search", "search.html")
async def search(opened: OpenedHere, served: ServedHere, query: Annotated[Query, Depends(_query)]) -> dict[str, Any]:
    """Features by concept, by what they fire on, promote or cause, by their labels, on a text, or like another one.

    Fields: those of :class:`saekit.views.search_page.Query`. Only a search by text waits for the model.
    """
    database = await run_in_threadpool(lambda: opened.database)
    if query.q and query.needs_model:
        if not query.dictionary:
            query = replace(query, dictionary=(await run_in_threadpool(database.saes))[0].dictionary)
        view = await searched_by_text(served, opened, query)
    else:
        view = await run_in_threadpool(search_page, database, query)
    fields = {name: value for name, value in view["asked"].items() if value != getattr(Query(), name)}
    base = f"/w/{opened.name}/search"
    return view | {
        "previous": f"{base}?{urlencode(fields | {'page': query.page - 1})}" if query.page > 1 else None,
        "next": f"{base}?{urlencode(fields | {'page': query.page + 1})}" if view["more"] else None,
    }
