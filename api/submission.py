"""From a validated body to a committed job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import IO, Any

from uuid_utils.compat import uuid7

from api.problems import invalid
from api.quotas import quotas_of, refuse_what_never_fits
from api.requests import SubmitBody
from api.state import ApiState
from revln.access import Caller
from revln.db.collections import Collection, get_collection
from revln.db.jobs import Job
from revln.db.submit import NewChunk, NewJob, find_by_key, submit_job
from revln.db.usage import Usage
from revln.encoded import from_base64
from revln.errors import FetchRefused, FingerprintMismatch, ItemNotFound, NotFound
from revln.fetch import postable
from revln.jobs.kinds import KINDS, JobKind, queue_name
from revln.jobs.search_schemas import AUTO, NO_MATCH_SCORE
from revln.models.base import ModelInfo, Operation

__all__ = ["submit"]

# Items of a chunk for which nothing has to be computed: a chunk costs some ten milliseconds, whatever is in it.
_MANY_ITEMS = 1_000
_LINE_MAX_BYTES = 2**20  # the longest item, fully escaped, takes a fifth of it
_RANGE_MAX_BYTES = 64 * 2**20  # what a worker reads of a manifest at once, blank lines included


def submit(state: ApiState, by: Caller, body: SubmitBody, idempotency_key: str | None) -> tuple[Job, bool]:
    """Check what the schema cannot, write the job, ask for it to be published; the job, and whether it is new.

    Raises:
        ValidationFailed, NotFound, FingerprintMismatch, IdempotencyMismatch, TooBusy, Unavailable
    """
    kind = KINDS[body.kind]
    sent = body.model_dump(mode="json", exclude_none=True)
    encoded = json.dumps(sent, sort_keys=True).encode()
    request_sha256, size_bytes = hashlib.sha256(encoded).hexdigest(), len(encoded)
    parameters: dict[str, Any] = sent["input"]
    with state.db.read() as connection:
        # First of all: a repeat gets its job even if the service is busy now, or the collection gone.
        if known := find_by_key(connection, by.tenant, idempotency_key, request_sha256):
            return known, False
    info, collection = _model_and_collection(state, by.tenant, kind.name, body.model, parameters)
    if parameters.get("operation") == "migrate":
        _check_migration(body, collection, info)
    if parameters.get("min_score") == AUTO and (info is None or info.match_min_score is None):
        of = f"Model {info.name}" if info else "A collection of your own vectors"
        raise invalid("/input/min_score", NO_MATCH_SCORE.format(of))
    items = parameters.pop(kind.items_field, None) or parameters.pop("ids", None)
    if kind.name == "index" and items is None and kind.source_field not in parameters:
        items = [None]  # what there is to be done is known when it runs
    source = parameters.get(kind.source_field)
    images: set[str] = set()
    chunk_items = _MANY_ITEMS if _is_quick(parameters, collection) else kind.chunk_items
    if items is not None:
        queried = collection if kind.name == "search" else None
        images = _take_inline(state, by.tenant, items, f"/input/{kind.items_field}", queried)
        total, chunks = len(items), list(_slices(items, chunk_items))
    else:
        assert source is not None
        total, chunks = _manifest_chunks(state, by.tenant, source["sha256"], kind, chunk_items)
        size_bytes += chunks[-1].source_end
    if kind.name == "caption":
        _refuse_endless_captions(parameters, total, state.settings.max_caption_tokens)
    quotas = quotas_of(state.settings, by)
    where = kind.source_field if items is None else kind.items_field
    refuse_what_never_fits(quotas, Usage(total, size_bytes), f"/input/{where}")
    job, new = submit_job(
        state.db,
        NewJob(
            id=str(uuid7()),
            by=by,
            kind=kind.name,
            priority=body.priority,
            queue=queue_name(kind.name, body.priority),
            max_attempts=kind.max_attempts,
            input=parameters,
            total=total,
            chunks=chunks,
            metadata=sent.get("metadata", {}),
            tag=_tag(sent.get("metadata", {})),
            retention_s=body.retention_s or state.settings.retention_s,
            model=info.name if info else None,
            model_fingerprint=_fingerprint(kind, info, collection),
            collection=collection.name if collection else None,
            deadline_s=body.deadline_s,
            starting_deadline_s=body.starting_deadline_s,
            active_deadline_s=body.active_deadline_s,
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
            webhook=_webhook(state, body),
            size_bytes=size_bytes,
            images=images,
            manifest=source["sha256"] if items is None and source else None,
            quotas=quotas,
        ),
    )
    if new:
        state.publisher.publish(queue_name(job.kind, job.priority))
    return job, new


def _webhook(state: ApiState, body: SubmitBody) -> dict[str, Any] | None:
    """What is stored of it; its URL is judged here as far as that goes without asking for the name."""
    if body.webhook is None:
        return None
    try:
        target = postable(body.webhook.url, state.settings.webhook_private_addresses)
    except FetchRefused as err:
        raise invalid("/webhook/url", err.message) from err
    return {
        "url": body.webhook.url,
        "origin": target.shown,
        "events": list(dict.fromkeys(event.value for event in body.webhook.events)),
        "progress_s": state.settings.webhook_progress_s,
    }


def _model_and_collection(
    state: ApiState, tenant: str, kind: str, wanted: str | None, parameters: dict[str, Any]
) -> tuple[ModelInfo | None, Collection | None]:
    """The model that the job runs on: the one named, else the collection's, else the default.

    None: the collection holds the user's own vectors.
    """
    collection = None
    if (name := parameters.get("collection")) is not None:
        try:
            with state.db.read() as connection:
                collection = get_collection(connection, tenant, name)
        except NotFound as err:
            raise invalid("/input/collection", err.message) from err
    given = parameters.get("vectors_of")
    if collection is not None and given is not None and given != collection.model_fingerprint:
        raise FingerprintMismatch(f"Collection {name!r} holds {collection.holds}; the items' vectors are of {given}.")
    if collection is not None and not collection.has_model:
        if wanted is not None and parameters.get("operation") != "migrate":
            raise invalid("/model", f"collection {name!r} holds {collection.holds} and has no model; leave it out")
        if kind not in ("index", "search"):
            raise invalid("/input/collection", f"{name!r} holds {collection.holds}; only a model's can be used here")
        return None, collection
    try:
        info = state.catalog.describe(wanted or (collection.model if collection else state.catalog.default))
        if kind == "caption" and collection is not None:
            return _captioner(state, info, wanted, collection), collection
    except NotFound as err:
        raise invalid("/model", err.message) from err
    migrates = parameters.get("operation") == "migrate"
    if collection is not None and collection.model_fingerprint != info.joint_fingerprint and not migrates:
        raise FingerprintMismatch(
            f"Collection {collection.name!r} holds vectors of {collection.model} ({collection.model_fingerprint}); "
            f'model {info.name} is {info.joint_fingerprint}. Leave out "model", or name another collection; or have '
            f"this one embedded by {info.name}: revln index migrate {collection.name} --model {info.name}"
        )
    return info, collection


def _check_migration(body: SubmitBody, collection: Collection | None, info: ModelInfo | None) -> None:
    if collection is None or info is None:
        raise invalid("/input/collection", "its vectors are your own, which no model can make again")
    if body.model is None:
        raise invalid("/model", "name the model that is to embed the collection; GET /v1/models lists them")
    if info.dim is None:
        raise invalid("/model", f"model {info.name} makes no vectors")


def _captioner(state: ApiState, info: ModelInfo, wanted: str | None, collection: Collection) -> ModelInfo:
    """Who captions: the model asked for, else the collection's if it can, else the default.

    Whoever it is, pictures are looked up in the collection with the collection's own model, which must be here.
    """
    if info.joint_fingerprint != collection.model_fingerprint:
        retriever = state.catalog.describe(collection.model)
        if retriever.joint_fingerprint != collection.model_fingerprint:
            raise FingerprintMismatch(
                f"Collection {collection.name!r} holds {collection.holds}, but {collection.model} is now "
                f"{retriever.joint_fingerprint}, so no evidence can be looked up. Name another collection, or none."
            )
    else:
        retriever = info
    if Operation.EMBED_IMAGE not in retriever.operations:
        raise invalid(
            "/input/collection",
            f"{collection.name!r} holds {collection.holds}, which reads no pictures; evidence needs one that does",
        )
    if wanted is None and Operation.CAPTION not in info.operations:
        return state.catalog.describe(state.catalog.default)
    return info


def _refuse_endless_captions(parameters: dict[str, Any], total: int, most: int) -> None:
    """Quotas count items, and one item may be a thousand times the work of another."""
    rows = "num_captions" if parameters["temperature"] else "num_beams"
    tokens = total * parameters[rows] * parameters["max_new_tokens"]
    if tokens > most:
        raise invalid(
            "/input",
            f"{total:,} items, {rows}={parameters[rows]} and max_new_tokens={parameters['max_new_tokens']} may take "
            f"{tokens:,} tokens; at most {most:,} are generated in one job (REVLN_MAX_CAPTION_TOKENS): lower one of "
            "them, or split the job",
        )


def _fingerprint(kind: JobKind, info: ModelInfo | None, collection: Collection | None) -> str | None:
    if info is None:
        return collection.model_fingerprint if collection else None
    return info.fingerprint if kind.whole_model else info.joint_fingerprint


def _is_quick(parameters: dict[str, Any], collection: Collection | None) -> bool:
    """Whether an item is only written down, and nothing has to be computed for it."""
    writes_only = parameters.get("operation") == "delete" or "vectors_of" in parameters
    return "operation" in parameters and (writes_only or (collection is not None and not collection.has_model))


def _take_inline(
    state: ApiState, tenant: str, items: list[Any], pointer: str, collection: Collection | None
) -> set[str]:
    """Move base64 images into the blob store (rows stay small, the same bytes are kept once); all that are named then.

    With a ``collection`` they are queries, which must be such as can be asked of it.
    """
    sent: list[bytes] = []
    named: set[str] = set()
    for part, place in _parts(items, pointer):
        image = part.get("image") or {}
        if collection is not None:
            _check_query(part, place, collection)
        if (encoded := image.pop("base64", None)) is not None:
            try:
                data = from_base64(encoded)
            except ValueError as err:
                raise invalid(f"{place}/image/base64", f"not base64: {err}") from err
            image["sha256"] = hashlib.sha256(data).hexdigest()
            sent.append(data)
        if "sha256" in image:
            named.add(image["sha256"])
    state.uploads.put(tenant, sent)
    return named


def _check_query(part: dict[str, Any], place: str, collection: Collection) -> None:
    vector = part.get("vector")
    if vector is not None and len(vector) != collection.dim:
        detail = f"{len(vector)} dimensions; vectors of collection {collection.name!r} have {collection.dim}"
        raise invalid(f"{place}/vector", detail)
    unread = next((name for name in ("text", "image") if name in part), None)
    if unread and not collection.has_model:
        detail = f"collection {collection.name!r} holds {collection.holds} and has no model to read this with"
        raise invalid(f"{place}/{unread}", f"{detail}; search it by vector or by id")


def _parts(items: list[Any], pointer: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Items, and the parts of queries that have several; not the ids of a delete."""
    for number, item in enumerate(items):
        if isinstance(item, list):
            yield from _parts(item, f"{pointer}/{number}")
        elif isinstance(item, dict):
            yield item, f"{pointer}/{number}"


def _slices(items: list[Any], size: int) -> Iterator[NewChunk]:
    for start in range(0, len(items), size):
        part = items[start : start + size]
        yield NewChunk(start, len(part), items=part)


def _manifest_chunks(
    state: ApiState, tenant: str, sha256: str, kind: JobKind, chunk_items: int
) -> tuple[int, list[NewChunk]]:
    """Cut a manifest into byte ranges of ``chunk_items`` lines each, without ever holding it in memory."""
    pointer = f"/input/{kind.source_field}/sha256"
    chunks: list[NewChunk] = []
    total = in_chunk = start = end = 0
    try:
        if not state.uploads.of(tenant, "manifest", [sha256]):
            raise ItemNotFound
        with state.blobs.open(sha256, "manifests") as file:
            for begin, stop in _lines(file, pointer, state.settings.max_job_items):
                if in_chunk == chunk_items or (in_chunk and stop - start > _RANGE_MAX_BYTES):
                    chunks.append(NewChunk(total - in_chunk, in_chunk, source_offset=start, source_length=end - start))
                    in_chunk = 0
                if not in_chunk:
                    start = begin
                total, in_chunk, end = total + 1, in_chunk + 1, stop
    except ItemNotFound as err:
        raise invalid(pointer, f"there is no manifest {sha256}; POST /v1/manifests uploads one") from err
    if not total:
        raise invalid(pointer, "the manifest has no items; it needs at least one line that is not blank")
    chunks.append(NewChunk(total - in_chunk, in_chunk, source_offset=start, source_length=end - start))
    return total, chunks


def _lines(file: IO[bytes], pointer: str, most: int) -> Iterator[tuple[int, int]]:
    """Where each line that is not blank begins and ends."""
    number = offset = 0
    while line := file.readline(_LINE_MAX_BYTES + 1):
        number += 1
        if number > most:
            raise invalid(pointer, f"more than {most} lines (REVLN_MAX_JOB_ITEMS); submit it as several jobs")
        if len(line) > _LINE_MAX_BYTES:
            raise invalid(pointer, f"line {number} is longer than {_LINE_MAX_BYTES:,} bytes; shorten it")
        if line.strip():
            yield offset, offset + len(line)
        offset += len(line)


def _tag(metadata: dict[str, Any]) -> str | None:
    tag = metadata.get("tag")
    return tag[:256] if isinstance(tag, str) else None
