"""When a server that refuses would be asked again."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

__all__ = ["seconds_asked"]

_SECONDS = re.compile(r"[0-9]{1,9}")


def seconds_asked(value: str) -> float:
    """Seconds from now that a Retry-After header's value means, in either of its forms; 0 if it is none."""
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
