"""Errors in OpenAI's format, which its clients turn into their own exceptions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from saekit.errors import ContextTooLong, ModelNotFound, SaekitError, UnknownRef
from saekit.serve.failures import status_of
from saekit.serve.worker import Busy, Stopped, TooLong

_log = logging.getLogger(__name__)


class UnknownModel(UnknownRef):
    """No model is served under that name."""


_CODES: dict[type[SaekitError], str] = {
    Busy: "rate_limit_exceeded",
    TooLong: "request_too_large",
    ContextTooLong: "context_length_exceeded",
    Stopped: "server_shutting_down",
    ModelNotFound: "model_not_loaded",
    UnknownModel: "model_not_found",
}
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


def facts(error: Exception) -> dict[str, Any]:
    """The body of an error."""
    message, code = f"An unexpected error: {type(error).__name__}. The server's terminal shows more.", None
    if isinstance(error, SaekitError):
        message, code = str(error), _CODES.get(type(error))
    kind = _TYPES.get(_status(error), "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _status(error: Exception) -> int:
    return status_of(error) if isinstance(error, SaekitError) else 500


def answer(error: Exception) -> Response:
    """A response that an error makes."""
    if not isinstance(error, SaekitError):
        _log.error("a request failed", exc_info=error)
    status = _status(error)
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
