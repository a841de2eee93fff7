"""The captions that a picture's captioner is prompted with: those of its nearest items, if they are near enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revln.db.collections.collections import Collection
from revln.db.collections.generations import generation_for
from revln.errors import ItemError
from revln.jobs.caption_schemas import CaptionParameters
from revln.models.base import Evidence
from worker.context import Context
from worker.embedding import Content, embed
from worker.index.nearest import Wanted, nearest
from worker.models.loading import LoadedModel

__all__ = ["Found", "find_evidence"]

_LOOK_FURTHER = 4  # neighbours without a text are no evidence, so look at this many times as many


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for one picture, best first; ``note`` says why it is nothing."""

    evidence: tuple[Evidence, ...] = ()
    note: str | None = None


def find_evidence(
    context: Context[CaptionParameters], captioner: LoadedModel, contents: Sequence[Content | ItemError]
) -> list[Found]:
    """For each picture; nothing without a collection. Retrieval is by the collection's model, whoever captions."""
    if context.job.collection is None:
        return [Found() for _ in contents]
    with context.runtime.db.read() as connection:
        # Its own vectors of it, if there are any from before a migration.
        fingerprint = captioner.model.info.joint_fingerprint
        collection = generation_for(connection, context.job.tenant, context.job.collection, fingerprint)
    retriever = _retriever(context, captioner, collection)
    vectors = embed(context, retriever, contents)
    good = [Wanted(vector) for vector in vectors if not isinstance(vector, ItemError)]
    asked = context.parameters
    hits, _ = nearest(context, collection, good, asked.neighbors * _LOOK_FURTHER, filter_json=asked.filter)
    # The request's limit, else the model's: what its operator said, or what was calibrated for it.
    limit = retriever.model.info.evidence_min_score if asked.evidence_min_score is None else asked.evidence_min_score
    found = iter(hits)
    near = [vector if isinstance(vector, ItemError) else next(found) for vector in vectors]
    return [
        Found(note=f"No evidence was looked for: {one.message}")
        if isinstance(one, ItemError)
        else _near(one, asked.neighbors, limit, collection)
        for one in near
    ]


def _retriever(context: Context[Any], captioner: LoadedModel, collection: Collection) -> LoadedModel:
    """The captioner itself if the vectors are its own. Raises ModelUnavailable if the files here are of another."""
    if captioner.model.info.joint_fingerprint == collection.model_fingerprint:
        return captioner
    return context.runtime.models.get(collection.model, collection.model_fingerprint)


def _near(hits: list[dict[str, Any]], wanted: int, limit: float | None, collection: Collection) -> Found:
    told = [Evidence(hit["id"], hit["text"], hit["score"]) for hit in hits if hit["text"]][:wanted]
    near = tuple(one for one in told if limit is None or one.score >= limit)
    if near:
        return Found(near)
    if not told:
        return Found(note=f"None of the nearest items of collection {collection.name!r} has a text.")
    return Found(
        note=f"The nearest text of collection {collection.name!r} has score {told[0].score:g}, below "
        f"evidence_min_score {limit:g}: captioned without evidence."
    )
