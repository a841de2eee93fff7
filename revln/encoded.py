"""Base64 in the forms that people send it in."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

__all__ = ["from_base64"]

_DATA_URI = re.compile(r"\s*data:[^,]{0,200}?;\s*base64\s*,", re.IGNORECASE)
_TO_STANDARD = str.maketrans("-_", "+/", " \t\r\n\f\v")
_STRANGE = re.compile(r"[^A-Za-z0-9+/]")


def from_base64(text: str) -> bytes:
    """Decode base64: in lines as `base64 FILE` prints it, of a data URI, with the URL-safe letters, without padding.

    Raises:
        ValueError: it is none of these; the message says what is in the way.
    """
    if found := _DATA_URI.match(text):
        text = text[found.end() :]
        text = unquote(text) if "%" in text else text
    elif text.lstrip()[:5].lower() == "data:":
        raise ValueError("this data URI is not in base64: it needs ';base64,' before its data")
    letters = text.translate(_TO_STANDARD).rstrip("=")
    if strange := _STRANGE.search(letters):
        raise ValueError(f"{strange[0]!r} is no character of it")
    if len(letters) % 4 == 1:
        raise ValueError(f"{len(letters):,} characters are one too many or too few: it was cut")
    return base64.b64decode(letters + "=" * (-len(letters) % 4))
