"""The ids of imported rows: each row's own, or its number; never two of one id."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from revln.errors import UsersError

__all__ = ["RowIds"]


class RowIds:
    """Gives each row its id, in the order of the rows.

    Attributes:
        numbered: a row had no id, so its number is its id.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.numbered = False
        self._seen: set[bytes] = set()  # digests: 70 bytes a row, however long the ids are

    def of(self, number: int, given: Any) -> str:
        """Raises UsersError: another row has the same id, or this one is no id."""
        if given is None:
            self.numbered = True
            item_id = f"{self.prefix}{number}"
        elif given == "" or (isinstance(given, float) and not math.isfinite(given)):
            raise UsersError(f"Row {number} has the id {given!r}. {_WAY_OUT}")
        else:
            item_id = str(given)
        digest = hashlib.blake2b(item_id.encode(errors="surrogatepass"), digest_size=12).digest()
        if digest in self._seen:
            raise UsersError(
                f"Row {number} has the id {item_id!r}, and so has a row before it: of two items of one id only one is "
                f"kept. Rows before it may have been written. {_WAY_OUT}"
            )
        self._seen.add(digest)
        return item_id

    def check_room(self, name: str, items: int) -> None:
        """Raises UsersError if the numbers of rows would take the place of what is in the collection."""
        if self.numbered and items and not self.prefix:
            raise UsersError(
                f"The rows have no ids, so their numbers are ids, and collection {name!r} has {items} items already, "
                "which they may overwrite. Give these rows ids of their own with --id-prefix TEXT; or, to write over "
                "what is there (an import that was cut off), --overwrite."
            )


_WAY_OUT = "Give every row an id of its own, or name the field that has them with --id-field."
