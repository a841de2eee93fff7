"""Which rows of a collection's log pass a filter: read a stretch at a time, each within a deadline.

A filter of 7 kB (256 × `contains`) over arrays of 5,400 values once held SQLite's write lock for 38 s. So rows are
found outside any write transaction, a statement tests no more than so many rows × conditions, and the database itself
stops one that takes too long all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from revln.db import tables
from revln.db.collections.filters import filter_clause
from revln.db.engine import Database
from revln.errors import TooCostly
from revln.jobs.filters import Filter, count_conditions

__all__ = ["matching_seqs"]

_STATEMENT_S = 10.0  # a good one takes a tenth of a second
_TESTS = 20_000  # rows × conditions of one statement; metadata has 16 KiB at most, so this bounds bytes, too
_ALL_S = 60.0  # of one filter in one chunk; some twenty million rows of usual metadata on SQLite


def matching_seqs(
    db: Database,
    collection_id: str,
    wanted: Filter,
    after_seq: int,
    up_to_seq: int,
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield the rows in (after_seq, up_to_seq] whose metadata passes, void ones included, and the last row looked at.

    What a live row says never changes, so whoever keeps the answer need only ask for the rows that came since.

    Args:
        between: called before each stretch; may raise.

    Raises:
        TooCostly: a stretch, or all of them together, took too long.
    """
    columns, spent_s = tables.vectors.c, 0.0
    rows = max(_TESTS // count_conditions(wanted), 1)
    while after_seq < up_to_seq:
        between()
        began = time.monotonic()
        end = min(after_seq + rows, up_to_seq)
        with db.read(limit_s=_STATEMENT_S) as connection:
            query = select(columns.seq).where(
                columns.collection_id == collection_id,
                columns.seq > after_seq,
                columns.seq <= end,
                columns.op == "upsert",
                filter_clause(wanted, columns.metadata, connection),
            )
            found = np.fromiter(connection.scalars(query.order_by(columns.seq)), dtype=np.int64)
        spent_s += time.monotonic() - began
        after_seq = end
        yield found, end
        if spent_s > _ALL_S and after_seq < up_to_seq:
            raise TooCostly(
                f"The filter was tested for {spent_s:.0f} s, and {up_to_seq - after_seq:,} rows are still to come; a "
                f"job may have {_ALL_S:g} s of the database. Use fewer conditions, or shorter metadata."
            )
