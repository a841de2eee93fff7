"""What travels between the client and the API: problem+json, Retry-After, result pages, server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from revln import errors
from revln.fetch import seconds_asked

__all__ = ["ApiError", "Event", "NotDoneInTime", "error_of", "list_of", "retry_after_s", "sse_events"]


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's event log."""

    id: str
    type: str
    data: dict[str, Any]


class ApiError(errors.RevlnError):
    """The server refused with a ``code`` that this client does not know."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.remote_code = code


class NotDoneInTime(errors.RevlnError, TimeoutError):
    """A job that was waited for was not done in time. It goes on."""


def error_of(answer: httpx.Response) -> errors.RevlnError:
    """The error of the house that a problem+json body names."""
    try:
        problem = answer.json()
        code, detail = str(problem.get("code", "")), str(problem.get("detail") or problem.get("title") or "")
        fields = tuple(errors.FieldError(str(e["detail"]), str(e["pointer"])) for e in problem.get("errors", []))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):  # not ours: a proxy's page
        code, detail, fields = "", "", ()
    if not detail:
        detail = f"HTTP {answer.status_code} {answer.reason_phrase} from {answer.url}"
    if to := answer.headers.get("Location"):
        detail += f", which leads to {to}. No redirect is followed, lest a key goes astray; give the right address"
    known = _classes(errors.RevlnError).get(code)
    if known is errors.ValidationFailed:
        return errors.ValidationFailed(detail, fields)
    return known(detail) if known else ApiError(detail, answer.status_code, code)


def _classes(root: type[errors.RevlnError]) -> dict[str, type[errors.RevlnError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= _classes(child)
    return found


def retry_after_s(answer: httpx.Response) -> float:
    """Seconds of a Retry-After header in either of its forms; 0 if there is none."""
    return seconds_asked(answer.headers.get("Retry-After", ""))


def list_of(page: Mapping[str, Any]) -> str:
    """The name of the list that a result's pages cut: ``results`` of a search, ``items`` of every other kind."""
    return "results" if "results" in page else "items"


def sse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events; comments (heartbeats) are skipped."""
    event_id, kind, data = "", "message", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event_id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif not line and data:
            yield Event(event_id, kind, json.loads("\n".join(data)))
            kind, data = "message", []
