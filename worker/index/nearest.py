"""The nearest items of a collection for many vectors at once: filtered, cut into pages, near-duplicates folded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.db.collections.collections import Collection, live_seqs, rows_by_seq
from revln.db.collections.log import read_vectors
from revln.errors import ItemError, ItemInvalid
from worker.context import Context

__all__ = ["Wanted", "nearest"]

_MAX_REACH = 10_000  # how far down the list dedup looks for hits that are no duplicates
_SHOWN_BYTES = 64 * 2**20  # of all hits of a chunk: 100,000 of them may have 100 kB of text and metadata each
_HIT_BYTES = 200  # of a hit without these
_ROWS = 2_000  # looked up at once
_TRIES = 5  # a log that grows during each of them


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of one query's vector."""

    vector: NDArray[np.float32]  # (D,), unit norm
    min_score: float = -1.0
    without: frozenset[str] = frozenset()  # ids that are no hits


@dataclass(frozen=True, slots=True)
class _Found:
    """A hit, and those that it stands for."""

    seq: int
    score: float
    duplicates: list[int] | None = None  # a list with dedup


def nearest(
    context: Context[Any],
    collection: Collection,
    wanted: Sequence[Wanted],
    k: int,
    *,
    offset: int = 0,
    filter_json: dict[str, Any] | None = None,
    dedup: float | None = None,
) -> tuple[list[list[dict[str, Any]] | ItemError], int]:
    """For each vector its hits ``offset`` to ``offset + k``, best first, ties by the older row, as a search shows them;
    and the row of the log up to which they are true.
    """
    end = offset + k
    hidden = _rows_of(context, collection, wanted)
    reach = (end if dedup is None else 2 * end) + max((len(one.without) for one in wanted), default=0)
    while True:
        raw, seq = _search(context, collection, wanted, reach, filter_json)
        found = [_kept(hits, one, hidden) for hits, one in zip(raw, wanted, strict=True)]
        if dedup is not None:
            found = [_folded(context, collection, hits, dedup) for hits in found]
        # Folding may have left too few while there was more to be had.
        short = any(
            len(kept) < end and len(hits) == reach and hits[-1][1] >= one.min_score
            for kept, hits, one in zip(found, raw, wanted, strict=True)
        )
        if dedup is None or not short or reach >= _MAX_REACH:
            break
        reach = min(reach * 4, _MAX_REACH)
        context.lease.progress()
        context.lease.check()
    return _shown(context, collection, [hits[offset:end] for hits in found], wanted), seq


def _search(
    context: Context[Any],
    collection: Collection,
    wanted: Sequence[Wanted],
    reach: int,
    filter_json: dict[str, Any] | None,
) -> tuple[list[list[tuple[int, float]]], int]:
    """(seq, cosine) hits of the whole index, or of what passes the filter."""
    index = context.runtime.indexes.caught_up(collection)
    if not wanted:
        return [], index.seq
    queries = np.stack([one.vector for one in wanted])
    if filter_json is None:
        return index.search(queries, reach), index.seq
    for _ in range(_TRIES):
        allowed = context.runtime.filters.allowed(collection.id, filter_json, index.seq)
        found = index.search(queries, reach, allowed=allowed.seqs)
        # Another thread may have brought in rows that the filter has not seen, and with them made void what it has.
        if index.seq <= allowed.seq:
            break
    return found, index.seq


def _rows_of(context: Context[Any], collection: Collection, wanted: Sequence[Wanted]) -> dict[str, int | None]:
    """The rows of the items that are no hits: of different queries, so each looks up its own in here."""
    ids = [item_id for one in wanted for item_id in one.without]
    if not ids:
        return {}
    with context.runtime.db.read() as connection:
        return live_seqs(connection, collection.id, ids)


def _kept(hits: list[tuple[int, float]], wanted: Wanted, hidden: dict[str, int | None]) -> list[_Found]:
    without = {hidden.get(item_id) for item_id in wanted.without}
    return [_Found(seq, score) for seq, score in hits if score >= wanted.min_score and seq not in without]


def _folded(context: Context[Any], collection: Collection, hits: list[_Found], dedup: float) -> list[_Found]:
    """Each hit that is as near as ``dedup`` to a better one joins the best such."""
    seqs = np.array(sorted(hit.seq for hit in hits), dtype=np.int64)
    with context.runtime.db.read() as connection:
        there, rows = read_vectors(connection, collection.id, seqs, collection.dim)
    place = {int(seq): at for at, seq in enumerate(there)}
    hits = [hit for hit in hits if hit.seq in place]
    kept: list[tuple[_Found, list[int]]] = []
    chosen = np.empty_like(rows)
    for hit in hits:
        row = rows[place[hit.seq]]
        near = np.flatnonzero(chosen[: len(kept)] @ row >= dedup)
        if len(near):
            kept[near[0]][1].append(hit.seq)
        else:
            chosen[len(kept)] = row
            kept.append((hit, []))
    return [replace(hit, duplicates=others) for hit, others in kept]


def _shown(
    context: Context[Any], collection: Collection, pages: list[list[_Found]], wanted: Sequence[Wanted]
) -> list[list[dict[str, Any]] | ItemError]:
    """What is answered of each query; ItemInvalid for one whose hits are too much beside those before it."""
    seqs = list(dict.fromkeys(seq for hits in pages for hit in hits for seq in (hit.seq, *(hit.duplicates or ()))))
    rows: dict[int, dict[str, Any]] = {}
    sizes: dict[int, int] = {}
    unread: list[int] = []
    with context.runtime.db.read() as connection:
        for start in range(0, len(seqs), _ROWS):
            if sum(sizes.values()) > _SHOWN_BYTES:
                unread = seqs[start:]
                break
            some = rows_by_seq(connection, collection.id, seqs[start : start + _ROWS])
            rows.update(some)
            sizes.update({seq: _size_of(row) for seq, row in some.items()})
    left = _SHOWN_BYTES
    shown: list[list[dict[str, Any]] | ItemError] = []
    for hits, one in zip(pages, wanted, strict=True):
        size = sum(sizes.get(hit.seq, 0) for hit in hits)
        if size > left or not {hit.seq for hit in hits}.isdisjoint(unread):
            shown.append(_too_much(size))
            continue
        left -= size
        # A row may be gone if the collection was deleted under us: then the search is of what is left, nothing. And an
        # item that was replaced since its row was looked up is still not to be seen.
        there = [hit for hit in hits if hit.seq in rows and rows[hit.seq]["item_id"] not in one.without]
        shown.append([_hit(rows, hit) for hit in there])
    return shown


def _size_of(row: dict[str, Any]) -> int:
    return _HIT_BYTES + len(row["text"] or "") + (len(json.dumps(row["metadata"])) if row["metadata"] else 0)


def _too_much(size: int) -> ItemError:
    return ItemInvalid(
        f"This query's hits have {size:,} bytes of texts and metadata, and all that are answered with it may have "
        f"{_SHOWN_BYTES:,}. Ask for fewer (k), page by page (offset), or in several jobs."
    )


def _hit(rows: dict[int, dict[str, Any]], hit: _Found) -> dict[str, Any]:
    row = rows[hit.seq]
    shown = {
        "id": row["item_id"],
        "score": round(hit.score, 6),
        "text": row["text"],
        "metadata": row["metadata"] or {},
        "image": {"sha256": row["image_sha256"]} if row["image_sha256"] else None,
    }
    if hit.duplicates is not None:
        shown["duplicates"] = [rows[seq]["item_id"] for seq in hit.duplicates if seq in rows]
    return shown
