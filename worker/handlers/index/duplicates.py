"""duplicates: which items of a collection are nearly the same, as groups with one that stands for each.

It reads and changes nothing, so a run that was cut off is run again from the beginning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.db.collections.collections import Collection, live_seqs, rows_by_seq
from revln.index.collection import CollectionIndex
from revln.index.duplicates import Group, Groups, approximate_pairs, describe, exact_pairs
from revln.jobs.index_schemas import DuplicatesParameters
from worker.context import Context, Done, Outcome
from worker.handlers.index.collection import open_serving

__all__ = ["run_duplicates"]

_MOST_LISTED = 10_000  # of one group; its size says how many there are
_LOOKED_UP = 20_000  # rows whose ids are read at once


def run_duplicates(context: Context[DuplicatesParameters]) -> Done:
    collection, least = open_serving(context), context.parameters.min_score
    index = context.runtime.indexes.caught_up(collection)
    seq = index.seq
    rows = _rows(context, collection, index, seq)
    # Without a built part nothing is to be gained by asking the index: it would look at every row too.
    exact = context.parameters.exact or index.tail_rows == len(index)
    groups = Groups(rows)
    for left, right in (exact_pairs if exact else approximate_pairs)(index, rows, least, lambda: _step(context)):
        groups.join(left, right)
    listed = _listed(context, collection, index, groups.found())
    report = {
        "items": len(rows),
        "groups": len(listed),
        "duplicates": sum(one["size"] - 1 for one in listed),
        "min_score": least,
        "exact": exact,
    }
    outcomes = [Outcome(0, fields={"seq": seq, "report": report})]
    outcomes += [
        Outcome(number, id=one["id"], fields={"seq": seq, "size": one["size"], "duplicates": one["duplicates"]})
        for number, one in enumerate(listed, start=1)
    ]
    return Done(outcomes)


def _step(context: Context[Any]) -> None:
    context.lease.check()
    context.lease.progress()


def _rows(
    context: Context[DuplicatesParameters], collection: Collection, index: CollectionIndex, seq: int
) -> NDArray[np.int64]:
    """The live rows up to ``seq`` that pass the filter, ascending."""
    rows = index.live_seqs()
    rows = rows[rows <= seq]
    if context.parameters.filter is None:
        return rows
    allowed = context.runtime.filters.allowed(collection.id, context.parameters.filter, seq)
    return np.intersect1d(rows, allowed.seqs, assume_unique=True)


def _listed(
    context: Context[Any], collection: Collection, index: CollectionIndex, groups: list[NDArray[np.int64]]
) -> list[dict[str, Any]]:
    """The groups as they are shown; items that were replaced or deleted while we looked are in none of them."""
    shown: list[dict[str, Any]] = []
    batch: list[Group] = []
    rows = 0
    for number, seqs in enumerate(groups):
        _step(context)
        group = describe(index, seqs)
        if group is not None:
            batch.append(group)
            rows += 1 + min(len(group.members), _MOST_LISTED)
        if rows >= _LOOKED_UP or number == len(groups) - 1:
            shown += _named(context, collection, batch)
            batch, rows = [], 0
    return shown


def _named(context: Context[Any], collection: Collection, groups: list[Group]) -> list[dict[str, Any]]:
    wanted = [seq for group in groups for seq in (group.representative, *group.members[:_MOST_LISTED].tolist())]
    with context.runtime.db.read() as connection:
        ids = {seq: row["item_id"] for seq, row in rows_by_seq(connection, collection.id, wanted).items()}
        live = live_seqs(connection, collection.id, list(ids.values()))
    ids = {seq: item_id for seq, item_id in ids.items() if live.get(item_id) == seq}
    shown = []
    for group in groups:
        listed = [
            {"id": ids[seq], "score": round(score, 6)}
            for seq, score in zip(group.members[:_MOST_LISTED].tolist(), group.scores.tolist(), strict=False)
            if seq in ids
        ]
        if group.representative in ids and listed:
            unlisted = max(len(group.members) - _MOST_LISTED, 0)
            shown.append({"id": ids[group.representative], "size": 1 + len(listed) + unlisted, "duplicates": listed})
    return shown
