"""What a blob is called: in the store, and in an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from revln.errors import ItemInvalid, ItemNotFound, RevlnError, Unavailable

__all__ = ["answering", "blob_path", "check_prefix", "is_sha256"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def is_sha256(name: str) -> bool:
    """Whether a file's name is a blob's."""
    return _SHA256.fullmatch(name) is not None


def blob_path(sha256: str, prefix: str) -> str:
    """Where a blob lies, below the store's root. Raises `ItemInvalid` where the two cannot name one."""
    if not isinstance(sha256, str) or not is_sha256(sha256):
        raise ItemInvalid(f"{str(sha256)[:80]!r} is not a SHA-256: 64 lower-case hexadecimal digits are.")
    return f"{check_prefix(prefix)}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def check_prefix(prefix: str) -> str:
    """Hand a prefix back. Raises `ItemInvalid` where it is none."""
    if not _PREFIX.fullmatch(prefix):
        raise ItemInvalid(f"{prefix[:80]!r} is not a prefix: a lower-case letter, then letters, digits, - or _.")
    return prefix


@contextmanager
def answering(name: str, prefix: str) -> Iterator[None]:
    """Turn a missing file into `ItemNotFound`, and whatever else the store's own library raises into `Unavailable`."""
    try:
        yield
    except RevlnError:
        raise
    except FileNotFoundError as err:
        raise ItemNotFound(f"There is no {prefix}/{name} in the blob store. Upload it first.") from err
    except Exception as err:
        # Not the whole message: it may hold a path, a bucket or an endpoint, and this goes to clients.
        reason = type(err).__name__
        if isinstance(err, OSError):
            reason = err.strerror or (str(err) if type(err) is OSError else reason)
        raise Unavailable(f"The blob store failed at {prefix}/{name}: {reason}. Try again.") from err
