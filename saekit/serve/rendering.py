"""Pages out of plain dicts. Every page is there twice: as HTML, and under the same address with `.json` as data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from saekit.files import document
from saekit.report.templates import make_environment
from saekit.serve.routers import ROUTERS
from saekit.serve.state import Served
from saekit.serve.static_files import injected_styles, static_url
from saekit.terminal import json_safe

JSON = ".json"
PART = "x-part"
"""A script that asks with this header gets the part of a page that is new, to put it into the page that is open."""
View = Callable[..., dict[str, Any] | Awaitable[dict[str, Any]]]
V = TypeVar("V", bound=View)


@cache
def environment() -> Environment:
    """The templates."""
    found = make_environment(Path(__file__).parent / "templates")
    found.globals |= {"static": static_url, "injected_styles": injected_styles}
    return found


def page(
    router: APIRouter, path: str, template: str, *, method: str = "GET", tags: Sequence[str] = ("pages",)
) -> Callable[[V], V]:
    """Make a page of a function that returns a dict: HTML at `path`, and the dict at `path` with `.json`.

    Args:
        router: gets both routes.
        path: as FastAPI has it, without a slash at the end.
        template: file in `templates/`. It gets the dict as `view`; see :func:`html` for what else it gets.
        method: POST for pages that take a form.
        tags: of the routes in OpenAPI.
    """

    def made(view: V) -> V:
        def shown(request: Request, found: dict[str, Any]) -> Response:
            return html(request, template, found)

        def data(request: Request, found: dict[str, Any]) -> Response:
            return json_response(found)

        both: dict[str, Any] = {"methods": [method], "tags": list(tags)}
        router.add_api_route(path + JSON, _answering(view, data), name=f"{view.__name__}_json", **both)
        router.add_api_route(path, _answering(view, shown), response_class=HTMLResponse, include_in_schema=False, **both)
        return view

    return made


def _answering(view: View, answer: Callable[[Request, dict[str, Any]], Response]) -> Callable[..., Any]:
    """A route's function: calls `view` with what FastAPI gives it, and makes a response of its dict."""
    if inspect.iscoroutinefunction(view):

        async def waiting(*args: Any, request: Request, **values: Any) -> Response:
            return answer(request, await view(*args, **values))

        return _signed(waiting, view)

    def calling(*args: Any, request: Request, **values: Any) -> Response:
        found = view(*args, **values)
        assert isinstance(found, dict)
        return answer(request, found)

    return _signed(calling, view)


def _signed(route: Any, view: View) -> Callable[..., Any]:
    """`route` with the parameters of `view`, which FastAPI reads, and the request."""
    functools.update_wrapper(route, view)
    del route.__wrapped__  # FastAPI would look at it instead
    signature = inspect.signature(view, eval_str=True)
    extra = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    parameters = [*signature.parameters.values(), extra]
    route.__signature__ = signature.replace(parameters=parameters, return_annotation=Response)
    found: Callable[..., Any] = route
    return found


def json_response(data: Any, status: int = 200) -> Response:
    """Plain data as JSON; NaN and infinities become null."""
    return Response(json_safe(document(data)), status, media_type="application/json")


def html(request: Request, template: str, view: dict[str, Any], status: int = 200) -> HTMLResponse:
    """A page.

    Args:
        template: file in `templates/`. It gets `view`; `here`, which has the workspace's name `ws`, the page's `path`, its
            JSON twin `json`, whether the server is `read_only`, and `copied`; `navigation`; and `workspaces`, the names of all.
    """
    served: Served = request.app.state.served
    ws = request.path_params.get("ws", "")
    ws = ws if ws in served.workspaces else ""
    query = f"?{request.url.query}" if request.url.query else ""
    here = {
        "ws": ws,
        "path": request.url.path,
        "json": request.url.path.rstrip("/") + JSON + query if request.url.path != "/" else "/workspaces.json",
        "read_only": served.settings.read_only,
        "copied": "",
        "copied_pages": (),
    }
    if request.headers.get(PART):
        template = f"part_{template}"
    return HTMLResponse(rendered(template, view, here, list(served.workspaces)), status)


def rendered(template: str, view: dict[str, Any], here: dict[str, Any], workspaces: Sequence[str]) -> str:
    """A page as text; see :func:`html`. `copied` of `here` is the date of a copy in files, and empty at a server."""
    ws = here["ws"]
    navigation = [{"title": row.title, "path": f"/w/{ws}/{row.path}".rstrip("/")} for row in ROUTERS.values() if row.title]
    shown = environment().get_template(template)
    return shown.render(view=view, here=here, navigation=navigation if ws else [], workspaces=list(workspaces))
