"""How a time reads in JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload

__all__ = ["timestamp"]


@overload
def timestamp(seconds: float) -> str: ...
@overload
def timestamp(seconds: float | None) -> str | None: ...


def timestamp(seconds: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
