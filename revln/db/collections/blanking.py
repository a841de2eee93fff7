"""What a row of a log said goes once another row has replaced it; the row keeps its ``seq``, which has no gaps.

Who replays the log over a blanked row adds nothing for it, and makes nothing void at the row that replaced it, which
was there before: the index is the same. Contents (`revln.db.collections.items`, searches, migrations)
are read of live rows alone.
A builder reads rows that were live when it began, so nothing is blanked under one.
"""

from __future__ import annotations

from itertools import takewhile

from sqlalchemy import exists, select, update

from revln.db import tables
from revln.db.collections.snapshots import SnapshotState
from revln.db.engine import Database, db_now

__all__ = ["blank_replaced"]

_SETTLED_S = 3_600.0  # a search that began before a row was replaced may still want to show it

_C, _V, _S = tables.collections.c, tables.vectors.c, tables.snapshots.c


def blank_replaced(db: Database, most: int, settled_s: float = _SETTLED_S) -> int:
    """Go on by up to ``most`` rows in the log of some collection; how many rows that was, 0 once all are done."""
    old = _V.created_at < db_now() - settled_s
    following = exists().where(_V.collection_id == _C.id, _V.seq == _C.blanked_seq + 1, old)
    built = exists().where(
        _S.collection_id == _C.id, _S.state == SnapshotState.BUILDING, _S.lease_until >= db_now()
    )  # fmt: skip
    with db.write() as connection:
        todo = select(_C.id, _C.blanked_seq).where(following, ~built).order_by(_C.id).limit(1)
        found = connection.execute(todo.with_for_update(skip_locked=True)).one_or_none()
        if found is None:
            return 0
        rows = connection.execute(
            select(_V.seq, _V.replaces_seq, old.label("old"))
            .where(_V.collection_id == found.id, _V.seq > found.blanked_seq, _V.seq <= found.blanked_seq + most)
            .order_by(_V.seq)
        ).all()
        settled = list(takewhile(lambda row: row.old, rows))
        replaced = [row.replaces_seq for row in settled if row.replaces_seq is not None]
        if replaced:
            connection.execute(
                update(tables.vectors)
                .where(_V.collection_id == found.id, _V.seq.in_(replaced))
                .values(vector=None, content_key=None, text=None, metadata=None, image_sha256=None)
            )
        connection.execute(
            update(tables.collections)
            .where(_C.id == found.id)
            .values(blanked_seq=settled[-1].seq if settled else found.blanked_seq)
        )
        return len(settled)
