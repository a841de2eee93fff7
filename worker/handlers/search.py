"""search: the nearest items of a collection for each query."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from revln.db.collections.collections import Collection, item_vectors
from revln.db.jobs.results import vectors_from_bytes
from revln.errors import ItemError, ItemInvalid, ItemNotFound, ModelUnavailable
from revln.jobs.schemas import Item
from revln.jobs.search_schemas import AUTO, NO_MATCH_SCORE, Query, QueryPart, SearchParameters, dedup_score
from worker.context import Context, Done, Outcome
from worker.embedding import embed, item_contents, load_embedder
from worker.handlers.index.collection import open_collection
from worker.index.nearest import Wanted, nearest
from worker.text_length import Read, measured

__all__ = ["run_search"]

_QUERY: TypeAdapter[QueryPart | list[QueryPart]] = TypeAdapter(Query)


def run_search(context: Context[SearchParameters]) -> Done:
    collection = open_collection(context)
    queries = [_parts(todo.raw) for todo in context.todo]
    vectors, reads = _query_vectors(context, collection, queries)
    wanted = [
        Wanted(vector, _least(context, query), _own_ids(context, query))
        for query, vector in zip(queries, vectors, strict=True)
        if not isinstance(vector, ItemError)
    ]
    asked = context.parameters
    hits, seq = nearest(
        context,
        collection,
        wanted,
        asked.k,
        offset=asked.offset,
        filter_json=asked.filter,
        dedup=dedup_score(asked.dedup),
    )
    found = iter(hits)
    answers = [vector if isinstance(vector, ItemError) else next(found) for vector in vectors]
    return Done(
        [
            Outcome(todo.index, error=answer)
            if isinstance(answer, ItemError)
            else Outcome(todo.index, fields={"hits": answer, "seq": seq, **read})
            for todo, answer, read in zip(context.todo, answers, reads, strict=True)
        ]
    )


def _parts(raw: Any) -> list[QueryPart]:
    query = _QUERY.validate_python(raw)
    return query if isinstance(query, list) else [query]


def _own_ids(context: Context[SearchParameters], query: list[QueryPart]) -> frozenset[str]:
    return frozenset(part.id for part in query if part.id is not None and context.parameters.exclude_self)


def _least(context: Context[SearchParameters], query: list[QueryPart]) -> float:
    """The least score of a hit. What counts as a match depends on what is asked with; a mixture takes the lower."""
    least = context.parameters.min_score
    if least is None:
        return -1.0
    if least != AUTO:
        return float(least)
    assert context.job.model is not None
    known = context.runtime.catalog.describe(context.job.model).match_min_score
    if known is None:
        raise ModelUnavailable(NO_MATCH_SCORE.format(f"Model {context.job.model}"))
    return min(known["text" if part.text is not None else "image"] for part in query)


def _query_vectors(
    context: Context[SearchParameters], collection: Collection, queries: list[list[QueryPart]]
) -> tuple[list[NDArray[np.float32] | ItemError], list[Read]]:
    """Each query's unit-norm vector: the weighted sum of its parts' unit vectors, normalised; and how it was read."""
    parts = [part for query in queries for part in query]
    made = iter(_part_vectors(context, collection, parts))
    combined: list[NDArray[np.float32] | ItemError] = []
    reads: list[Read] = []
    for query in queries:
        own = [next(made) for _ in query]
        error = next((vector for vector, _ in own if isinstance(vector, ItemError)), None)
        combined.append(error or _combine(query, [vector for vector, _ in own if not isinstance(vector, ItemError)]))
        # Of several parts that were cut, the longest.
        reads.append(max((read for _, read in own), key=lambda read: read.get("tokens", 0)))
    return combined, reads


def _combine(query: list[QueryPart], vectors: list[NDArray[np.float32]]) -> NDArray[np.float32] | ItemError:
    total = np.sum([part.weight * vector for part, vector in zip(query, vectors, strict=True)], axis=0)
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        return ItemInvalid("The parts of this query cancel each other out; change their weights.")
    return np.asarray(total / norm, dtype=np.float32)


def _part_vectors(
    context: Context[SearchParameters], collection: Collection, parts: list[QueryPart]
) -> list[tuple[NDArray[np.float32] | ItemError, Read]]:
    found: dict[int, NDArray[np.float32] | ItemError] = {}
    reads: dict[int, Read] = {}
    to_embed = [at for at, part in enumerate(parts) if part.text is not None or part.image is not None]
    if to_embed:
        loaded = load_embedder(context)
        items = [Item(text=parts[at].text, image=parts[at].image) for at in to_embed]
        contents, read = measured(loaded, item_contents(context, items, queries=True), context.parameters.truncate)
        found.update(zip(to_embed, embed(context, loaded, contents), strict=True))
        reads.update(zip(to_embed, read, strict=True))
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
    return [(found[at], reads.get(at, {})) for at in range(len(parts))]


def _given(values: list[float], collection: Collection) -> NDArray[np.float32] | ItemError:
    if len(values) != collection.dim:
        return ItemInvalid(
            f"The vector has {len(values)} dimensions, collection {collection.name!r} has {collection.dim}."
        )
    # hypot, because the square of a large number may be more than a float holds.
    return np.asarray(np.asarray(values) / math.hypot(*values), dtype=np.float32)
