"""From a validated body to a committed job."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from uuid_utils.compat import uuid7

from api.job_checks import CHECKS, Submission, parts
from api.job_model import fingerprint, model_and_collection
from api.manifests import cut_manifest
from api.problems import invalid
from api.quotas import quotas_of, refuse_what_never_fits
from api.requests import SubmitBody
from api.state import ApiState
from revln.access import Caller
from revln.db.jobs.read import Job
from revln.db.jobs.submit import Inline, NewChunk, NewJob, find_by_key, submit_job
from revln.db.jobs.usage import Usage
from revln.encoded import from_base64
from revln.errors import FetchRefused
from revln.fetch import postable
from revln.jobs.kinds import KINDS, queue_name

__all__ = ["submit"]


def submit(state: ApiState, by: Caller, body: SubmitBody, idempotency_key: str | None) -> tuple[Job, bool]:
    """Check what the schema cannot, write the job, ask for it to be published. Return it, and whether it is new.

    Raises:
        ValidationFailed, NotFound, FingerprintMismatch, IdempotencyMismatch, TooBusy, StorageFull, Unavailable
    """
    sent = body.model_dump(mode="json", exclude_none=True)
    encoded = json.dumps(sent, sort_keys=True).encode()
    request_sha256 = hashlib.sha256(encoded).hexdigest()
    with state.db.read() as connection:
        # First of all: a repeat gets its job even if the service is busy now, or the collection gone.
        if known := find_by_key(connection, by.tenant, idempotency_key, request_sha256):
            return known, False
    state.blobs.check_room()  # rows need room, too, and the database mostly lies beside the blobs
    new = _validate(state, by.tenant, body, sent["input"])
    job, is_new = submit_job(state.db, _new_job(state, by, body, new, len(encoded), idempotency_key, request_sha256))
    if is_new:
        state.publisher.publish(queue_name(job.kind, job.priority))
    return job, is_new


def _validate(state: ApiState, tenant: str, body: SubmitBody, given: dict[str, Any]) -> Submission:
    kind = KINDS[body.kind]
    operation = kind.operation(given)
    parameters = operation.parameters.model_validate(given)
    info, collection = model_and_collection(state, tenant, operation, body.model, parameters)
    size = operation.chunk_items
    if operation.written_chunk_items and (parameters.brings_vectors or not (collection and collection.has_model)):
        size = operation.written_chunk_items
    if parameters.manifest_sha256 is None:
        chunks = _slices(given.get(operation.items_field) or [None], size)
    else:
        chunks = cut_manifest(state, tenant, parameters.manifest_sha256, size)
    new = Submission(operation, parameters, chunks, info, collection)
    if check := CHECKS.get(kind.name):
        check(new, state.settings)
    return new


def _slices(items: list[Any], size: int) -> list[NewChunk]:
    slices = [items[start : start + size] for start in range(0, len(items), size)]
    return [NewChunk(number * size, len(part), Inline(part)) for number, part in enumerate(slices)]


def _new_job(
    state: ApiState, by: Caller, body: SubmitBody, new: Submission, size_bytes: int, key: str | None, sha256: str
) -> NewJob:
    kind, metadata = KINDS[body.kind], body.metadata
    images = _take_images(state, by, new.items, new.pointer)
    size_bytes += new.manifest_bytes
    quotas = quotas_of(state.settings, by)
    refuse_what_never_fits(quotas, Usage(new.total, size_bytes), new.pointer)
    return NewJob(
        id=str(uuid7()),
        by=by,
        kind=kind.name,
        priority=body.priority,
        queue=queue_name(kind.name, body.priority),
        max_attempts=kind.max_attempts,
        input=new.parameters.model_dump(mode="json", exclude_none=True),
        total=new.total,
        chunks=new.chunks,
        metadata=metadata,
        tag=_tag(metadata),
        retention_s=body.retention_s or state.settings.retention_s,
        model=new.info.name if new.info else None,
        model_fingerprint=fingerprint(new.operation, new.info, new.collection),
        collection=new.collection.name if new.collection else None,
        **{name: getattr(body, name) for name in ("deadline_s", "starting_deadline_s", "active_deadline_s")},
        idempotency_key=key,
        request_sha256=sha256,
        webhook=_webhook(state, body),
        size_bytes=size_bytes,
        images=images,
        manifest=new.parameters.manifest_sha256,
        quotas=quotas,
    )


def _take_images(state: ApiState, by: Caller, items: list[Any], pointer: str) -> set[str]:
    """Move base64 images into the blob store: rows stay small, the same bytes are kept once. Return those named."""
    sent: list[bytes] = []
    named: set[str] = set()
    for part, place in parts(items, pointer):
        image = part.get("image") or {}
        if (encoded := image.pop("base64", None)) is not None:
            try:
                data = from_base64(encoded)
            except ValueError as err:
                raise invalid(f"{place}/image/base64", f"not base64: {err}") from err
            image["sha256"] = hashlib.sha256(data).hexdigest()
            sent.append(data)
        if "sha256" in image:
            named.add(image["sha256"])
    state.uploads.put(by.tenant, sent, by.key_id)
    return named


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


def _tag(metadata: dict[str, Any]) -> str | None:
    tag = metadata.get("tag")
    return tag[:256] if isinstance(tag, str) else None
