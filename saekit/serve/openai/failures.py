"""Errors in OpenAI's format, which its clients turn into their own exceptions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from saekit.errors import ContextTooLong, ModelNotFound, SaekitError, StoreMismatch, UnknownRef, WorkspaceError
from saekit.serve.worker import Busy, Stopped, TooLong

_log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[SaekitError], int, str], ...] = (
    (Busy, 429, "rate_limit_exceeded"),
    (TooLong, 413, "request_too_large"),
    (ContextTooLong, 400, "context_length_exceeded"),
    (Stopped, 503, "server_shutting_down"),
    (ModelNotFound, 503, "model_not_loaded"),
    (StoreMismatch, 409, "mismatch"),
    (UnknownRef, 404, "not_found"),
    (WorkspaceError, 404, "not_found"),
)
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class UnknownModel(UnknownRef):
    """No model is served under that name."""


def status_of(error: Exception) -> int:
    """The status of a response that an error makes."""
    if not isinstance(error, SaekitError):
        return 500
    return next((status for kind, status, _ in _STATUS if isinstance(error, kind)), 400)


def facts(error: Exception) -> dict[str, Any]:
    """The body of an error."""
    status = status_of(error)
    if not isinstance(error, SaekitError):
        message, code = f"An unexpected error: {type(error).__name__}. The server's terminal shows more.", None
    else:
        message, code = str(error), next((code for kind, _, code in _STATUS if isinstance(error, kind)), None)
    if isinstance(error, UnknownModel):
        code = "model_not_found"
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def answer(error: Exception) -> Response:
    """A response that an error makes."""
    if not isinstance(error, SaekitError):
        _log.error("a request failed", exc_info=error)
    status = status_of(error)
    return JSONResponse(facts(error), status, {"Retry-After": "2"} if status == 429 else None)


class OpenAIRoute(APIRoute):
    """A route that answers errors in OpenAI's format."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route, with its errors caught."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                first = error.errors()[0]
                param = ".".join(str(each) for each in first["loc"][1:]) or None
                body = {"message": f"{param or 'The body'}: {first['msg']}.", "type": "invalid_request_error", "param": param}
                return JSONResponse({"error": {**body, "code": None}}, 400)
            except HTTPException as error:
                body = {"message": str(error.detail), "type": "invalid_request_error", "param": None, "code": None}
                return JSONResponse({"error": body}, error.status_code)
            except Exception as error:
                return answer(error)

        return handler
