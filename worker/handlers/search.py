"""search: the nearest items of a collection for each query."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from revln.db.collections import Collection, item_vectors, rows_by_seq
from revln.db.results import vectors_from_bytes
from revln.errors import ItemError, ItemInvalid, ItemNotFound
from revln.jobs.schemas import Item, Query, QueryPart
from worker.context import Context, Done, Outcome
from worker.embedding import embed, item_contents
from worker.handlers.embed import load_embedder
from worker.handlers.index import open_collection

__all__ = ["nearest", "run_search"]

_QUERY: TypeAdapter[QueryPart | list[QueryPart]] = TypeAdapter(Query)


def run_search(context: Context) -> Done:
    collection = open_collection(context)
    queries = [_parts(todo.raw) for todo in context.todo]
    vectors = _query_vectors(context, collection, queries)
    good = [vector for vector in vectors if not isinstance(vector, ItemError)]
    hits, seq = nearest(context, collection, good, context.input["k"])
    least = context.input.get("min_score")
    found = iter(hits)
    outcomes = []
    for todo, vector in zip(context.todo, vectors, strict=True):
        if isinstance(vector, ItemError):
            outcomes.append(Outcome(todo.index, error=vector))
            continue
        kept = [hit for hit in next(found) if least is None or hit["score"] >= least]
        outcomes.append(Outcome(todo.index, fields={"hits": kept, "seq": seq}))
    return Done(outcomes)


def _parts(raw: Any) -> list[QueryPart]:
    query = _QUERY.validate_python(raw)
    return query if isinstance(query, list) else [query]


def nearest(
    context: Context, collection: Collection, vectors: list[NDArray[np.float32]], k: int
) -> tuple[list[list[dict[str, Any]]], int]:
    """The k nearest items for each (D,) vector, as a search shows them; and the log row up to which they are true."""
    index = context.runtime.indexes.caught_up(collection)
    found = index.search(np.stack(vectors), k) if vectors else []
    with context.runtime.db.read() as connection:
        rows = rows_by_seq(connection, collection.id, [seq for hits in found for seq, _ in hits])
    # A row may be gone if the collection was deleted under us: then the search is of what is left, nothing.
    return [[_hit(rows[seq], score) for seq, score in hits if seq in rows] for hits in found], index.seq


def _hit(row: dict[str, Any], score: float) -> dict[str, Any]:
    image = {"sha256": row["image_sha256"]} if row["image_sha256"] else None
    return {
        "id": row["item_id"],
        "score": round(score, 6),
        "text": row["text"],
        "metadata": row["metadata"] or {},
        "image": image,
    }


def _query_vectors(
    context: Context, collection: Collection, queries: list[list[QueryPart]]
) -> list[NDArray[np.float32] | ItemError]:
    """Each query's unit-norm vector: the weighted sum of its parts' unit vectors, normalised."""
    parts = [part for query in queries for part in query]
    vectors = iter(_part_vectors(context, collection, parts))
    combined: list[NDArray[np.float32] | ItemError] = []
    for query in queries:
        own = [next(vectors) for _ in query]
        error = next((vector for vector in own if isinstance(vector, ItemError)), None)
        combined.append(error or _combine(query, [vector for vector in own if not isinstance(vector, ItemError)]))
    return combined


def _combine(query: list[QueryPart], vectors: list[NDArray[np.float32]]) -> NDArray[np.float32] | ItemError:
    total = np.sum([part.weight * vector for part, vector in zip(query, vectors, strict=True)], axis=0)
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        return ItemInvalid("The parts of this query cancel each other out; change their weights.")
    return np.asarray(total / norm, dtype=np.float32)


def _part_vectors(
    context: Context, collection: Collection, parts: list[QueryPart]
) -> list[NDArray[np.float32] | ItemError]:
    found: dict[int, NDArray[np.float32] | ItemError] = {}
    to_embed = [at for at, part in enumerate(parts) if part.text is not None or part.image is not None]
    if to_embed:
        loaded = load_embedder(context)
        items = [Item(text=parts[at].text, image=parts[at].image) for at in to_embed]
        found.update(zip(to_embed, embed(context, loaded, item_contents(context, items)), strict=True))
    wanted = [part.id for part in parts if part.id is not None]
    with context.runtime.db.read() as connection:
        stored = item_vectors(connection, collection.id, wanted) if wanted else {}
    for at, part in enumerate(parts):
        if part.id is not None:
            raw = stored.get(part.id)
            missing = ItemNotFound(f"Collection {collection.name!r} has no item {part.id!r}.")
            found[at] = vectors_from_bytes(raw, 1)[0] if raw is not None else missing
        elif part.vector is not None:
            found[at] = _given(part.vector, collection)
    return [found[at] for at in range(len(parts))]


def _given(values: list[float], collection: Collection) -> NDArray[np.float32] | ItemError:
    if len(values) != collection.dim:
        return ItemInvalid(
            f"The vector has {len(values)} dimensions, collection {collection.name!r} has {collection.dim}."
        )
    # hypot, because the square of a large number may be more than a float holds.
    return np.asarray(np.asarray(values) / math.hypot(*values), dtype=np.float32)
