"""From a validated body to a committed job."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from uuid_utils.compat import uuid7

from api.problems import TooBusy
from api.requests import SubmitBody, check_storable
from api.state import ApiState
from revln.db.collections import Collection, get_collection
from revln.db.jobs import Job, NewChunk, NewJob, count_open_items, drain_rate, submit_job
from revln.errors import (
    FieldError,
    FingerprintMismatch,
    ItemInvalid,
    ItemNotFound,
    NotFound,
    ValidationFailed,
)
from revln.jobs.kinds import KINDS, JobKind, queue_name
from revln.models.base import ModelInfo

__all__ = ["submit"]

_BUSY_LEAST_S, _BUSY_MOST_S = 5, 3_600
_READ_BYTES = 2**20


def submit(state: ApiState, body: SubmitBody, idempotency_key: str | None) -> tuple[Job, bool]:
    """Check what the schema cannot, write the job, ask for it to be published; the job, and whether it is new.

    Raises:
        ValidationFailed, NotFound, FingerprintMismatch, IdempotencyMismatch, TooBusy, Unavailable
    """
    kind = KINDS[body.kind]
    sent = body.model_dump(mode="json", exclude_none=True)
    check_storable(sent)
    request_sha256 = hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()
    parameters: dict[str, Any] = sent["input"]
    info, collection = _model_and_collection(state, body.model, parameters)
    items = parameters.pop(kind.items_field, None) or parameters.pop("ids", None)
    source = parameters.get(kind.source_field)
    if items is not None:
        _store_inline_images(state, items, kind.items_field)
        total, chunks = len(items), list(_slices(items, kind.chunk_items))
    else:
        assert source is not None
        total, chunks = _manifest_chunks(state, source["sha256"], kind)
    _refuse_when_busy(state, total)
    job, new = submit_job(
        state.db,
        NewJob(
            id=str(uuid7()),
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
            model=info.name,
            model_fingerprint=info.fingerprint,
            collection=collection.name if collection else None,
            deadline_s=body.deadline_s,
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
        ),
    )
    if new:
        state.publisher.publish(queue_name(job.kind, job.priority))
    return job, new


def _invalid(pointer: str, detail: str) -> ValidationFailed:
    return ValidationFailed(f"{pointer}: {detail}", (FieldError(detail, pointer),))


def _model_and_collection(
    state: ApiState, wanted: str | None, parameters: dict[str, Any]
) -> tuple[ModelInfo, Collection | None]:
    """The model that the job runs on: the one named, else the collection's, else the default."""
    collection = None
    if (name := parameters.get("collection")) is not None:
        try:
            with state.db.read() as connection:
                collection = get_collection(connection, name)
        except NotFound as err:
            raise _invalid("/input/collection", err.message) from err
    try:
        info = state.catalog.describe(wanted or (collection.model if collection else state.catalog.default))
    except NotFound as err:
        raise _invalid("/model", err.message) from err
    if collection is not None and collection.model_fingerprint != info.fingerprint:
        raise FingerprintMismatch(
            f"Collection {collection.name!r} holds vectors of {collection.model} ({collection.model_fingerprint}); "
            f'model {info.name} is {info.fingerprint}. Leave out "model", or name another collection.'
        )
    return info, collection


def _store_inline_images(state: ApiState, items: list[Any], field: str) -> None:
    """Move base64 images into the blob store: rows and messages stay small, and the same bytes are kept once."""
    for place, item in enumerate(items):
        for image, pointer in _images_of(item, f"/input/{field}/{place}"):
            encoded = image.pop("base64", None)
            if encoded is None:
                continue
            try:
                data = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as err:
                raise _invalid(f"{pointer}/base64", f"not base64: {err}") from err
            image["sha256"] = state.blobs.put(data, "images")


def _images_of(item: Any, pointer: str) -> Iterator[tuple[dict[str, Any], str]]:
    parts = enumerate(item) if isinstance(item, list) else [("", item)]
    for place, part in parts:
        if isinstance(part, dict) and isinstance(image := part.get("image"), dict):
            yield image, f"{pointer}{f'/{place}' if isinstance(item, list) else ''}/image"


def _slices(items: list[Any], size: int) -> Iterator[NewChunk]:
    for start in range(0, len(items), size):
        part = items[start : start + size]
        yield NewChunk(start, len(part), items=part)


def _manifest_chunks(state: ApiState, sha256: str, kind: JobKind) -> tuple[int, list[NewChunk]]:
    """Cut a manifest into byte ranges of ``chunk_items`` lines each, without ever holding it in memory."""
    pointer = f"/input/{kind.source_field}/sha256"
    chunks: list[NewChunk] = []
    total = in_chunk = start = offset = 0
    try:
        with state.blobs.open(sha256, "manifests") as file:
            for line in file:
                offset += len(line)
                if not line.strip():
                    continue
                in_chunk += 1
                if in_chunk == kind.chunk_items:
                    chunks.append(_range(total, in_chunk, start, offset))
                    total, in_chunk, start = total + in_chunk, 0, offset
                if total > state.settings.max_job_items:
                    break
    except (ItemNotFound, ItemInvalid) as err:
        raise _invalid(pointer, f"{err.message} POST /v1/manifests uploads one.") from err
    if in_chunk:
        chunks.append(_range(total, in_chunk, start, offset))
        total += in_chunk
    if total > state.settings.max_job_items:
        limit = state.settings.max_job_items
        raise _invalid(pointer, f"more than {limit} items (REVLN_MAX_JOB_ITEMS); submit it as several jobs")
    if not total:
        raise _invalid(pointer, "the manifest has no items")
    return total, chunks


def _range(first: int, count: int, start: int, end: int) -> NewChunk:
    return NewChunk(first, count, source_offset=start, source_length=end - start)


def _tag(metadata: dict[str, Any]) -> str | None:
    tag = metadata.get("tag")
    return tag[:256] if isinstance(tag, str) else None


def _refuse_when_busy(state: ApiState, total: int) -> None:
    limit = state.settings.max_queued_items
    with state.db.read() as connection:
        waiting = count_open_items(connection)
        if waiting + total <= limit:
            return
        rate = drain_rate(connection)
    over = waiting + total - limit
    seconds = math.ceil(over / rate) if rate > 0 else _BUSY_MOST_S
    retry_after_s = min(max(seconds, _BUSY_LEAST_S), _BUSY_MOST_S)
    raise TooBusy(
        f"{waiting} items wait already and this job has {total}; at most {limit} may wait (REVLN_MAX_QUEUED_ITEMS). "
        f"At {rate:.0f} items/s there should be room in {retry_after_s} s.",
        retry_after_s,
    )
