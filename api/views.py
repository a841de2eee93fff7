"""How rows read as JSON: in the forms of `api.answers`."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel

from api.answers import (
    AttemptAnswer,
    AuditEntryAnswer,
    ChunkAnswer,
    CollectionAnswer,
    DeliveryAnswer,
    DeliveryDetail,
    GenerationAnswer,
    JobAnswer,
    KeyAnswer,
    SnapshotAnswer,
)
from revln.broker import task_id
from revln.db.access.audit import AuditEntry
from revln.db.access.keys import ApiKey
from revln.db.collections.collections import Collection
from revln.db.collections.snapshots import Snapshot
from revln.db.jobs.lists import ChunkInfo
from revln.db.jobs.read import Job
from revln.db.webhooks.log import LoggedDelivery
from revln.errors import ItemError
from revln.jobs.kinds import KINDS
from revln.jobs.state import ChunkState, JobStatus
from revln.settings import Settings
from revln.timestamps import timestamp

__all__ = [
    "audit_view",
    "chunk_view",
    "collection_view",
    "delivery_view",
    "etag",
    "generation_view",
    "item_view",
    "job_view",
    "key_view",
    "matches",
    "result_view",
    "shown",
    "snapshot_view",
]


def etag(job: Job) -> str:
    """Weak: ``eta_s`` and ``queue_position`` move without a new version."""
    return f'W/"{job.version}"'


def matches(tag: str, if_none_match: str | None) -> bool:
    """Whether an ETag is among those of an If-None-Match header, compared weakly (RFC 9110)."""
    given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return "*" in given or tag.removeprefix("W/") in given


def shown(form: type[BaseModel], row: Any, **more: Any) -> dict[str, Any]:
    """Return a row in the form of an answer: its fields by their names, times as text. ``more``: what is named else."""
    fields = {name: getattr(row, name) for name in form.model_fields if name not in more}
    return {name: timestamp(value) if name.endswith("_at") else value for name, value in fields.items()} | more


def job_view(job: Job, settings: Settings, queue_position: int | None = None) -> dict[str, Any]:
    base = f"{settings.public_url.rstrip('/')}/v1/jobs/{job.id}"
    done_items = job.succeeded + job.failed
    flower = settings.flower_url.rstrip("/")
    return shown(
        JobAnswer,
        job,
        done=job.status.done,
        counts={"total": job.total, "succeeded": job.succeeded, "failed": job.failed},
        progress=round(done_items / job.total, 4) if job.total else 1.0,
        queue_position=queue_position,
        eta_s=_eta_s(job, done_items),
        webhook={"url": job.webhook["url"], "events": job.webhook["events"]} if job.webhook else None,
        urls={
            "self": base,
            **{name: f"{base}/{name}" for name in ("cancel", "result", "events")},
            "flower": f"{flower}/task/{task_id(job.id, 0)}" if flower else None,
        },
    )


def _eta_s(job: Job, done_items: int) -> float | None:
    """Seconds to the end at the rate so far; unknown until something is done."""
    if job.status is not JobStatus.RUNNING or job.started_at is None or not done_items:
        return None
    elapsed = max(time.time() - job.started_at, 0.001)
    return round(elapsed * (job.total - done_items) / done_items, 1)


def collection_view(collection: Collection) -> dict[str, Any]:
    return shown(CollectionAnswer, collection, model=collection.model or None)


def snapshot_view(snapshot: Snapshot, current_id: str | None) -> dict[str, Any]:
    rounded = {name: round(getattr(snapshot, name), digits) for name, digits in _DIGITS.items()}
    return shown(SnapshotAnswer, snapshot, current=snapshot.id == current_id, **rounded)


_DIGITS = {"recall": 4, "qps": 1, "exact_qps": 1, "build_s": 3}


def generation_view(one: Collection) -> dict[str, Any]:
    role, model = one.shadow_role or "serving", one.model or None
    return shown(GenerationAnswer, one, role=role, model=model, up_to_seq=one.shadow_seq)


def delivery_view(delivery: LoggedDelivery, *, detail: bool = False) -> dict[str, Any]:
    attempts = [shown(AttemptAnswer, each) for each in delivery.attempts]
    next_try_at = None if delivery.state.settled else timestamp(delivery.due_at)
    form = DeliveryDetail if detail else DeliveryAnswer
    return shown(form, delivery, attempts=attempts, next_try_at=next_try_at)


def chunk_view(chunk: ChunkInfo) -> dict[str, Any]:
    return shown(
        ChunkAnswer,
        chunk,
        counts={"total": chunk.n_items, "succeeded": chunk.succeeded, "failed": chunk.failed},
        attempts_left=max(0, chunk.max_attempts - chunk.attempt),
        crashes=chunk.crash_count,
        run_at=timestamp(chunk.run_at) if chunk.state == ChunkState.QUEUED else None,
        lease_until=timestamp(chunk.lease_until),
    )


def key_view(key: ApiKey) -> dict[str, Any]:
    return shown(KeyAnswer, key, scopes=sorted(key.scopes))


def audit_view(entry: AuditEntry) -> dict[str, Any]:
    return shown(AuditEntryAnswer, entry, at=timestamp(entry.created_at))


def item_view(row: dict[str, Any]) -> dict[str, Any]:
    """A collection's item; with its vector if that was read."""
    vector = {"vector_b64": base64.b64encode(row["vector"]).decode()} if "vector" in row else {}
    return {
        "id": row["item_id"],
        "seq": row["seq"],
        "text": row["text"],
        "metadata": row["metadata"] or {},
        "image": {"sha256": row["image_sha256"]} if row["image_sha256"] else None,
        **vector,
    }


def result_view(job: Job, page: Iterable[tuple[dict[str, Any], Any]], dim: int | None) -> dict[str, Any]:
    """A page of a job's result in the form of its kind; ``dim`` is that of the job's model."""
    items = [item if vector is None else _with_vector(item, vector) for item, vector in page]
    seq = max((item["seq"] for item in items if "seq" in item), default=0)
    about = {name: getattr(job, name) for name in ("total", "model", "model_fingerprint", "collection")}
    return KINDS[job.kind].result.page(items, {**about, "dim": dim, "seq": seq, "head_seq": seq})


def _with_vector(item: dict[str, Any], vector: Any) -> dict[str, Any]:
    if np.isfinite(vector).all():
        return {**item, "embedding": vector.tolist()}
    # Stored before workers checked what a model gives.
    error = ItemError("The model gave a vector with NaN. Submit the item again.")
    return {"index": item["index"], "id": item.get("id"), "error": error.as_dict()}
