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

__all__ = ["run_search"]

_QUERY: TypeAdapter[QueryPart | list[QueryPart]] = TypeAdapter(Query)


def run_search(context: Context[SearchParameters]) -> Done:
    collection = open_collection(context)
    queries = [_parts(todo.raw) for todo in context.todo]
    vectors = _query_vectors(context, collection, queries)
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
            else Outcome(todo.index, fields={"hits": answer, "seq": seq})
            for todo, answer in zip(context.todo, answers, strict=True)
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
    context: Context[Any], collection: Collection, queries: list[list[QueryPart]]
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
    context: Context[Any], collection: Collection, parts: list[QueryPart]
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
