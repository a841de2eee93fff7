"""Errors as RFC 9457 problem details, with a stable ``code`` and JSON pointers into a bad body."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from revln.errors import (
    BodyTooSlow,
    Conflict,
    FieldError,
    Forbidden,
    IdempotencyMismatch,
    ImageError,
    InsufficientScope,
    ItemError,
    ItemNotFound,
    JobError,
    NotFound,
    PayloadTooLarge,
    RevlnError,
    StorageFull,
    TooBusy,
    TooCostly,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    UsersError,
    ValidationFailed,
)

__all__ = [
    "PROBLEM_TYPE",
    "STATUS",
    "MalformedEncoding",
    "MalformedJson",
    "install",
    "invalid",
    "problem",
    "problem_response",
    "status_of",
]

log = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
_MOST_ERRORS = 100  # a body of ten thousand bad items needs no answer of a megabyte
_RETRY_AFTER_S = 2  # for 503: a database or Redis that restarts is back within seconds


class MalformedJson(UsersError):
    """The body cannot be read as JSON at all."""

    code = "malformed_json"
    default_message = "The body is not JSON."


class MalformedEncoding(UsersError):
    """The body is not what its Content-Encoding says."""

    code = "malformed_encoding"
    default_message = "The body is not encoded as its Content-Encoding says."


# The nearest ancestor's status counts; a test holds that every error has one.
STATUS: dict[type[RevlnError], int] = {
    RevlnError: 500,
    UsersError: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    BodyTooSlow: 408,
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
    TooCostly: 422,
    Unavailable: 503,
    StorageFull: 507,
}


def status_of(error: RevlnError) -> int:
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem_response(error: RevlnError, instance: str) -> JSONResponse:
    headers = {}
    more: dict[str, Any] = {}
    if isinstance(error, ValidationFailed) and error.errors:
        more["errors"] = [{"detail": one.detail, "pointer": one.pointer} for one in error.errors[:_MOST_ERRORS]]
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, InsufficientScope):
        headers["WWW-Authenticate"] = f'Bearer error="{error.code}", scope="{error.scope}"'
    if isinstance(error, TooBusy):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status_of(error) == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    body = problem(status_of(error), error.code, error.default_message, error.message)
    return _response({**body, "instance": instance, **more}, headers)


def problem(status: int, code: str, title: str, detail: str) -> dict[str, Any]:
    """Return what every problem (RFC 9457) says, wherever it is written."""
    return {"type": f"urn:revln:problem:{code}", "title": title, "status": status, "code": code, "detail": detail}


class _ProblemResponse(JSONResponse):
    media_type = PROBLEM_TYPE

    def render(self, content: Any) -> bytes:
        # A pointer or a value said back may hold half a surrogate, which no UTF-8 has.
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _response(body: dict[str, Any], headers: dict[str, str]) -> JSONResponse:
    return _ProblemResponse(body, body["status"], headers)


def invalid(pointer: str, detail: str) -> ValidationFailed:
    """One thing wrong at one place."""
    return ValidationFailed(f"{pointer or 'The body'}: {detail}", (FieldError(detail, pointer),))


def install(app: FastAPI) -> None:
    """Make every error that leaves a route a problem."""

    async def revln_error(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, RevlnError)
        return problem_response(err, request.url.path)

    async def bad_request(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, RequestValidationError)
        return problem_response(_of_request(request, err), request.url.path)

    async def half_a_surrogate(request: Request, _: Exception) -> JSONResponse:
        # JSON can say it, and a library that copies what was sent into an error then falls over it.
        broken = invalid("", "half a surrogate (U+D800 to U+DFFF) is in it, which cannot be stored; remove it")
        return problem_response(broken, request.url.path)

    async def http_error(request: Request, err: Exception) -> JSONResponse:
        assert isinstance(err, HTTPException)
        if err.status_code == 400 and err.__cause__ is not None and (unread := _unreadable(err.__cause__)):
            return problem_response(unread, request.url.path)
        code = {404: "not_found", 405: "method_not_allowed"}.get(err.status_code, "bad_request")
        title = str(err.detail).rstrip(".")
        detail = f"{title}: {request.method} {request.url.path}. GET /docs shows what there is."
        headers = dict(err.headers or {})
        if err.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
        body = problem(err.status_code, code, title, detail) | {"type": "about:blank", "instance": request.url.path}
        return _response(body, headers)

    async def unexpected(request: Request, err: Exception) -> JSONResponse:
        route = getattr(request.scope.get("route"), "path", "a request")  # the path itself has names of users'
        log.exception("%s %s failed", request.method, route, exc_info=err)
        response = problem_response(RevlnError(), request.url.path)
        response.headers["Connection"] = "close"  # the server closes it after an exception
        return response

    app.add_exception_handler(RevlnError, revln_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(UnicodeEncodeError, half_a_surrogate)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)


def _methods(request: Request) -> list[str]:
    """What the path allows: Starlette's own Allow names the methods of one route, and a path may have several."""
    scopes = [{**request.scope, "method": method} for method in ("DELETE", "GET", "POST", "PUT")]
    routes = request.app.routes
    allowed = {one["method"] for one in scopes if any(route.matches(one)[0] is Match.FULL for route in routes)}
    return sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))


# --- what FastAPI and pydantic found ------------------------------------------------------------------------------


def _unreadable(cause: BaseException) -> MalformedJson | None:
    """Why a body could not be read, where FastAPI says only that it could not."""
    match cause:
        case UnicodeDecodeError():
            return MalformedJson(f"The body is not {cause.encoding}: byte {cause.start} is wrong. Send UTF-8.")
        case RecursionError():
            return MalformedJson("The body is nested too deeply to be read. Flatten it.")
        case ValueError():
            return MalformedJson("A number in the body has too many digits to be read. Send it as a text.")
    return None


def _of_request(request: Request, err: RequestValidationError) -> UsersError:
    errors = err.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return MalformedJson(f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}.")
    if isinstance(err.body, bytes):
        sent = request.headers.get("content-type", "nothing")
        return UnsupportedMedia(f"The body must be sent as Content-Type: application/json; it came as {sent[:100]}.")
    if first["loc"][0] == "body" and not isinstance(err.body, dict):
        given = {list: "an array", str: "a string", type(None): "nothing"}.get(type(err.body), "a number or a boolean")
        return invalid("", f"a JSON object is wanted, {given} was sent")
    fields = tuple(FieldError(_detail(error), _pointer(error, err.body)) for error in errors)
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return ValidationFailed(f"{fields[0].pointer or 'The body'}: {fields[0].detail}{more}", fields)


# pydantic's words where ours say more: what to do about it, or the size of what was sent.
_WORDS: dict[str, Callable[[Any], str]] = {
    "missing": lambda _: "this is required",
    "extra_forbidden": lambda _: "there is no such field here; GET /docs lists the fields",
    "string_too_long": lambda error: (
        f"{len(error['input']):,} characters; at most {error['ctx']['max_length']:,} are read: shorten it"
    ),
    "model_attributes_type": lambda _: "an object is wanted, as in {…}",
    "union_tag_unknown": lambda error: f"{error['msg']}; got {_short(error['input'].get('kind'))}",
}


def _detail(error: Any) -> str:
    if words := _WORDS.get(error["type"]):
        return words(error)
    given = error.get("input")
    shown = isinstance(given, str | int | float | bool) and len(str(given)) <= 100
    return str(error["msg"]).removeprefix("Value error, ") + (f" (got {given!r})" if shown else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _pointer(error: Any, body: Any) -> str:
    """RFC 6901, into the body; for a query parameter or a header, its name.

    pydantic's locations also hold tags of unions, which are no step into the body: they are told by walking along.
    """
    where, *steps = error["loc"]
    if where != "body":
        return "".join(f"/{step}" for step in steps)
    if error["type"] == "union_tag_unknown":
        return "/kind"
    pointer, value = "", body
    for number, step in enumerate(steps):
        inside = step in value if isinstance(value, dict) else isinstance(value, list) and isinstance(step, int)
        if inside or (error["type"] == "missing" and number == len(steps) - 1):
            pointer += "/" + str(step).replace("~", "~0").replace("/", "~1")
            value = value[step] if inside else None
    # A filter is read as one value; where in it something is wrong, its reader knows.
    return pointer + (error["ctx"]["pointer"] if error["type"] == "filter" else "")
