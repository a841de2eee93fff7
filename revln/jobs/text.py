"""What text every database can keep."""

from __future__ import annotations

import re

__all__ = ["is_storable", "storable"]

# NUL, and halves of surrogate pairs: PostgreSQL keeps neither.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Whether every database can keep this text."""
    return not _UNSTORABLE.search(text)


def storable(text: str) -> str:
    """The text itself. Raises ValueError that names the first character which cannot be kept."""
    if found := _UNSTORABLE.search(text):
        raise ValueError(f"character {found.start()} is U+{ord(found[0]):04X}, which cannot be stored; remove it")
    return text
