"""From files into a collection: uploaded as manifests, written by index jobs, a slice at a time.

An import that was cut off is run again: a slice is known by its bytes, so one that was written is neither uploaded nor
written again. It goes over HTTP like everything else, so the server may be anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from revln.client import Job, RevlnClient
from revln.errors import Conflict, NotFound, UsersError, ValidationFailed
from revln.jobs.state import JobStatus
from revln.transfer.sources import Piece, Source

__all__ = ["Imported", "import_items"]

_SLICE_BYTES = 24 * 2**20  # of a manifest; held in memory
_IN_FLIGHT = 4  # slices that wait for their jobs: enough that no worker waits for us
_SHOWN_ERRORS = 10


@dataclass(slots=True)
class Imported:
    items: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)  # of the first items that failed


def import_items(
    client: RevlnClient,
    name: str,
    source: Source,
    *,
    own: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Imported:
    """Write every item of the source into the collection, which is made if it is not there.

    Args:
        own: take an export of a model's vectors as vectors of no model.
        overwrite: let rows that have numbers for ids take the place of items that are there.
        on_progress: told how many items more are written.

    Raises:
        UsersError: the collection holds other vectors than these, or two rows have one id.
    """
    collection = _collection(client, name, source, own)
    request: dict[str, Any] = {"collection": name}
    if collection["model"]:
        request["vectors_of"] = collection["model_fingerprint"]
    done = Imported()
    waiting: deque[Job] = deque()

    def settle() -> None:
        job = _finish(client, waiting.popleft())
        done.items += job["counts"]["succeeded"]
        done.failed += job["counts"]["failed"]
        _note_errors(client, job, done)
        on_progress(job["counts"]["total"])

    for lines in _slices(source.pieces):
        if not overwrite:
            source.ids.check_room(name, collection["count"])
        # A collection made again under the old name is another one, for which nothing has been written yet.
        waiting.append(_submit(client, request, lines, f"import {name} {collection['created_at']}"))
        if len(waiting) == _IN_FLIGHT:
            settle()
    while waiting:
        settle()
    return done


def _collection(client: RevlnClient, name: str, source: Source, own: bool) -> dict[str, Any]:
    fingerprint = None if own else source.fingerprint
    try:
        found = client.collection(name)
    except NotFound:
        found = (
            client.create_collection(name, source.model)
            if fingerprint
            else client.create_collection(name, dim=source.dim)
        )
    if found["dim"] != source.dim:
        raise Conflict(f"Collection {name!r} has {found['dim']} dimensions, the vectors to be imported {source.dim}.")
    if found["model"] and found["model_fingerprint"] != fingerprint:
        of = f"of {source.model} ({fingerprint})" if fingerprint else "of a model that the files do not name"
        raise Conflict(
            f"Collection {name!r} holds vectors of {found['model']} ({found['model_fingerprint']}); those to be "
            f"imported are {of}. Import them into a collection of their own (--own)."
        )
    return found


def _slices(pieces: Iterator[Piece]) -> Iterator[bytes]:
    """Manifests; cut by size alone, so that the same files give the same slices."""
    lines: list[bytes] = []
    size = 0
    for vectors, items in pieces:
        for vector, item in zip(vectors, items, strict=True):
            item["vector_b64"] = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            line = json.dumps(item, sort_keys=True).encode() + b"\n"
            lines.append(line)
            size += len(line)
            if size >= _SLICE_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
    if lines:
        yield b"".join(lines)


def _submit(client: RevlnClient, request: dict[str, Any], lines: bytes, key: str) -> Job:
    sha256 = hashlib.sha256(lines).hexdigest()
    body = {**request, "manifest": {"sha256": sha256}}
    key = f"{key} {sha256}"

    def submit() -> Job:
        return client.submit("index", body, idempotency_key=key, priority="bulk")

    try:
        # First without the bytes: they may be there already, or even the job.
        return submit()
    except ValidationFailed as err:
        if not any(one.pointer.startswith("/input/manifest") for one in err.errors):
            raise
    client.upload_manifest([lines])
    return submit()


def _finish(client: RevlnClient, job: Job) -> Job:
    known = job["done"]
    job = client.wait(job["id"])
    if known and job["status"] in (JobStatus.CANCELED, JobStatus.EXPIRED):
        job = client.wait(client.retry(job["id"])["id"])
    if job["status"] not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise UsersError(f"Job {job['id']} was {job['status']}; run the import again to go on where it stopped.")
    if job["error"] is not None and job["error"]["code"] != "all_items_failed":
        raise UsersError(f"Job {job['id']} failed: {job['error']['detail']}")
    return job


def _note_errors(client: RevlnClient, job: Job, done: Imported) -> None:
    if not job["counts"]["failed"] or len(done.errors) >= _SHOWN_ERRORS:
        return
    for page in client.result_pages(job["id"]):
        for item in page["items"]:
            if item.get("error") and len(done.errors) < _SHOWN_ERRORS:
                done.errors.append(f"{item['id']}: {item['error']['detail']}")
