"""Errors as RFC 9457 problem details, with a stable ``code`` and JSON pointers into a bad body."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from revln.errors import (
    Conflict,
    FieldError,
    IdempotencyMismatch,
    ImageError,
    ItemError,
    ItemNotFound,
    JobError,
    NotFound,
    PayloadTooLarge,
    RevlnError,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    UsersError,
    ValidationFailed,
)

__all__ = ["STATUS", "TooBusy", "install", "problem_response", "status_of"]

log = logging.getLogger(__name__)

_TYPE = "application/problem+json"
_RETRY_AFTER_S = 2  # for 503: a database or Redis that restarts is back within seconds


class TooBusy(UsersError):
    """More work is waiting than the service takes on; carries when to come again."""

    code = "too_busy"
    retryable = True
    default_message = "Too much work is waiting."

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# The nearest ancestor's status counts; a test holds that every error has one.
STATUS: dict[type[RevlnError], int] = {
    RevlnError: 500,
    UsersError: 400,
    Unauthorized: 401,
    NotFound: 404,
    Conflict: 409,
    PayloadTooLarge: 413,
    UnsupportedMedia: 415,
    ValidationFailed: 422,
    IdempotencyMismatch: 422,
    ItemError: 422,
    ImageError: 422,
    ItemNotFound: 404,
    JobError: 409,
    TooBusy: 429,
    Unavailable: 503,
}


def status_of(error: RevlnError) -> int:
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem_response(error: RevlnError, instance: str) -> JSONResponse:
    status = status_of(error)
    body: dict[str, Any] = {
        "type": f"urn:revln:problem:{error.code}",
        "title": error.default_message,
        "status": status,
        "code": error.code,
        "detail": error.message,
        "instance": instance,
    }
    if isinstance(error, ValidationFailed) and error.errors:
        body["errors"] = [{"detail": one.detail, "pointer": one.pointer} for one in error.errors]
    headers = {}
    if isinstance(error, TooBusy):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    return JSONResponse(body, status, headers, media_type=_TYPE)


def install(app: FastAPI) -> None:
    """Make every error that leaves a route a problem."""

    async def revln_error(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, RevlnError)
        return problem_response(err, request.url.path)

    async def invalid(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, RequestValidationError)
        return problem_response(validation_failed(err.errors()), request.url.path)

    async def http_error(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, HTTPException)
        body = {
            "type": "about:blank",
            "title": str(err.detail),
            "status": err.status_code,
            "code": {404: "not_found", 405: "method_not_allowed"}.get(err.status_code, "bad_request"),
            "detail": f"{err.detail}: {request.method} {request.url.path}",
            "instance": request.url.path,
        }
        return JSONResponse(body, err.status_code, dict(err.headers or {}), media_type=_TYPE)

    async def unexpected(request: Request, err: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=err)
        return problem_response(RevlnError(), request.url.path)

    app.add_exception_handler(RevlnError, revln_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def validation_failed(errors: Sequence[Any]) -> ValidationFailed:
    """pydantic's errors as field errors with RFC 6901 pointers into the body, or into the query string."""
    fields = tuple(
        # Which kind of job it is could not be told: that is the fault of /kind.
        FieldError(_detail(error), _pointer(error["loc"]) + ("/kind" if error["type"].startswith("union_tag") else ""))
        for error in errors
    )
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return ValidationFailed(f"{first.pointer or 'The body'}: {first.detail}{more}", fields)


def _detail(error: Any) -> str:
    detail = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    if isinstance(given, str | int | float | bool) and len(str(given)) <= 100:
        detail += f" (got {given!r})"
    return detail


def _pointer(location: Sequence[Any]) -> str:
    """Leave out what pydantic adds to a location: where the value stood, and the tags of unions."""
    steps = [str(step) for step in location[1:] if not str(step).startswith("(")]
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
