"""Pages of a listing, and opaque cursors: where the page before ended."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from api.problems import invalid
from revln.jobs.text import is_storable

__all__ = ["cut", "decode_cursor", "encode_cursor"]

_Row = TypeVar("_Row")


def cut(found: Sequence[_Row], limit: int, place: Callable[[_Row], list[Any]]) -> tuple[Sequence[_Row], str | None]:
    """A page of ``limit`` rows of what may be one more, and the cursor of the next one: the last row's ``place``."""
    page = found[:limit]
    return page, encode_cursor(place(page[-1])) if len(found) > limit else None


def encode_cursor(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, *types: type) -> list[Any] | None:
    """The position, whose parts must be of ``types``. Raises ValidationFailed for a cursor that we did not make."""
    if cursor is None:
        return None
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        position = None
    right = isinstance(position, list) and [type(part) for part in position] == list(types)
    if not right or not all(_fits(part) for part in position):
        raise invalid("/cursor", "not a cursor of this listing; use next_cursor of the page before, or leave it out")
    return list(position)


def _fits(part: Any) -> bool:
    """Whether the database can be asked about it."""
    match part:
        case float():
            return math.isfinite(part)
        case int():
            return abs(part) < 2**63
        case _:
            return is_storable(part)
