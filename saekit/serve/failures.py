"""Errors as pages, or as JSON for programs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from saekit.errors import (
    ConfigError,
    DatabaseError,
    InterventionError,
    ModelNotFound,
    SaekitError,
    StorageFull,
    StoreMismatch,
    UnknownRef,
    UnknownSite,
    Unwritable,
    WorkspaceError,
)
from saekit.serve.rendering import JSON, html, json_response
from saekit.serve.worker import Busy, Stopped, TooLong

_STATUS: tuple[tuple[type[SaekitError], int], ...] = (
    (UnknownRef, 404),
    (UnknownSite, 404),
    (ConfigError, 400),
    (InterventionError, 400),
    (StorageFull, 507),
    (Unwritable, 403),
    (WorkspaceError, 409),
    (StoreMismatch, 409),
    (DatabaseError, 500),
    (TooLong, 413),
    (Busy, 429),
    (Stopped, 503),
    (ModelNotFound, 503),
)
_TITLES = {400: "Not possible", 403: "Refused", 404: "Not found", 405: "Not possible here", 409: "Not possible now", 429: "Busy"}


def status_of(error: SaekitError) -> int:
    """The status of a response that an error makes."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 400)


def install(app: FastAPI) -> None:
    """Let the application answer errors with a page, or with JSON. No traceback leaves the server."""

    @app.exception_handler(SaekitError)
    def typed(request: Request, error: SaekitError) -> Response:
        return answer(request, status_of(error), error.what, error.hint, type(error).__name__)

    @app.exception_handler(HTTPException)
    def plain(request: Request, error: HTTPException) -> Response:
        what = "There is no such page." if error.detail == "Not Found" else str(error.detail)
        return answer(request, error.status_code, what)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:5])
        return answer(request, 422, f"A field of the request is impossible: {wrong}.")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        return answer(request, 500, f"An unexpected error: {type(error).__name__}.", "The server's terminal shows the traceback.")


def facts_of(error: Exception) -> dict[str, Any]:
    """What programs are told of an error."""
    if isinstance(error, SaekitError):
        return {"error": type(error).__name__, "message": error.what, "hint": error.hint}
    return {"error": "Error", "message": f"An unexpected error: {type(error).__name__}.", "hint": None}


def answer(request: Request, status: int, what: str, hint: str | None = None, kind: str = "") -> Response:
    """An error as JSON where a program asks, else as a page."""
    facts = {"error": kind or _TITLES.get(status, "Error"), "message": what, "hint": hint}
    if request.url.path.endswith(JSON) or "text/html" not in request.headers.get("accept", ""):
        return json_response(facts, status)
    return html(request, "error.html", facts | {"title": _TITLES.get(status, "Error"), "status": status}, status)
