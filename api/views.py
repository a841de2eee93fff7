"""How rows read as JSON."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from revln.broker import task_id
from revln.db.audit import AuditEntry
from revln.db.collections import Collection
from revln.db.jobs import Job
from revln.db.keys import ApiKey
from revln.db.snapshots import Snapshot
from revln.db.webhook_log import LoggedDelivery
from revln.errors import ItemError
from revln.jobs.state import JobStatus
from revln.settings import Settings
from revln.timestamps import timestamp

__all__ = [
    "audit_view",
    "collection_view",
    "delivery_view",
    "etag",
    "generation_view",
    "item_view",
    "job_view",
    "key_view",
    "matches",
    "result_view",
    "snapshot_view",
]


def etag(job: Job) -> str:
    """Weak: ``eta_s`` and ``queue_position`` move without a new version."""
    return f'W/"{job.version}"'


def matches(tag: str, if_none_match: str | None) -> bool:
    """Whether an ETag is among those of an If-None-Match header, compared weakly (RFC 9110)."""
    given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return "*" in given or tag.removeprefix("W/") in given


def job_view(job: Job, settings: Settings, queue_position: int | None = None) -> dict[str, Any]:
    base = f"{settings.public_url.rstrip('/')}/v1/jobs/{job.id}"
    done_items = job.succeeded + job.failed
    flower = settings.flower_url.rstrip("/")
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status.value,
        "done": job.status.done,
        "priority": job.priority,
        "model": job.model,
        "model_fingerprint": job.model_fingerprint,
        "collection": job.collection,
        "counts": {"total": job.total, "succeeded": job.succeeded, "failed": job.failed},
        "progress": round(done_items / job.total, 4) if job.total else 1.0,
        "queue_position": queue_position,
        "eta_s": _eta_s(job, done_items),
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "cancel_requested_at": timestamp(job.cancel_requested_at),
        "deadline_at": timestamp(job.deadline_at),
        "expires_at": timestamp(job.expires_at),
        "error": job.error,
        "metadata": job.metadata,
        "webhook": {"url": job.webhook["url"], "events": job.webhook["events"]} if job.webhook else None,
        "urls": {
            "self": base,
            "cancel": f"{base}/cancel",
            "result": f"{base}/result",
            "events": f"{base}/events",
            "flower": f"{flower}/task/{task_id(job.id, 0)}" if flower else None,
        },
    }


def _eta_s(job: Job, done_items: int) -> float | None:
    """Seconds to the end at the rate so far; unknown until something is done."""
    if job.status is not JobStatus.RUNNING or job.started_at is None or not done_items:
        return None
    elapsed = max(time.time() - job.started_at, 0.001)
    return round(elapsed * (job.total - done_items) / done_items, 1)


def collection_view(collection: Collection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "model": collection.model or None,
        "model_fingerprint": collection.model_fingerprint,
        "dim": collection.dim,
        "count": collection.count,
        "head_seq": collection.head_seq,
        "metadata": collection.metadata,
        "created_at": timestamp(collection.created_at),
        "updated_at": timestamp(collection.updated_at),
    }


def snapshot_view(snapshot: Snapshot, current_id: str | None) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "current": snapshot.id == current_id,
        "state": snapshot.state.value,
        "type": snapshot.type,
        "factory": snapshot.factory,
        "parameters": snapshot.parameters,
        "up_to_seq": snapshot.up_to_seq,
        "count": snapshot.count,
        "recall": round(snapshot.recall, 4),
        "qps": round(snapshot.qps, 1),
        "exact_qps": round(snapshot.exact_qps, 1),
        "build_s": round(snapshot.build_s, 3),
        "sha256": snapshot.sha256,
        "size_bytes": snapshot.size_bytes,
        "created_at": timestamp(snapshot.created_at),
    }


def generation_view(collection: Collection) -> dict[str, Any]:
    return {
        "role": collection.shadow_role or "serving",
        "model": collection.model or None,
        "model_fingerprint": collection.model_fingerprint,
        "dim": collection.dim,
        "count": collection.count,
        "head_seq": collection.head_seq,
        "up_to_seq": collection.shadow_seq,
        "created_at": timestamp(collection.created_at),
    }


def delivery_view(delivery: LoggedDelivery, *, detail: bool = False) -> dict[str, Any]:
    attempts = [
        {
            "number": each.number,
            "started_at": timestamp(each.started_at),
            "finished_at": timestamp(each.finished_at),
            "status": each.status,
            "error": each.error,
        }
        for each in delivery.attempts
    ]
    return {
        "id": delivery.id,
        "job_id": delivery.job_id,
        "type": delivery.type,
        "url": delivery.url,
        "state": delivery.state.value,
        "attempts": attempts,
        "next_try_at": None if delivery.state.settled else timestamp(delivery.due_at),
        "created_at": timestamp(delivery.created_at),
        "settled_at": timestamp(delivery.settled_at),
        **({"data": delivery.data} if detail else {}),
    }


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


_OF_QUERY = ("truncated", "tokens")


def result_view(job: Job, page: Iterable[tuple[dict[str, Any], Any]], dim: int | None) -> dict[str, Any]:
    """A page of a job's result in the form of its kind; ``dim`` is that of the job's model."""
    items = [item if vector is None else _with_vector(item, vector) for item, vector in page]
    match job.kind:
        case "embed":
            return {"items": items, **_of_model(job), "dim": dim}
        case "index":
            head = max((item["seq"] for item in items if "seq" in item), default=0)
            return {"items": items, "total": job.total, "collection": job.collection, "head_seq": head}
        case "search":
            results = [
                {"query": item["index"], **{key: item[key] for key in (*_OF_QUERY, "hits", "error") if key in item}}
                for item in items
            ]
            seq = max((item["seq"] for item in items if "seq" in item), default=0)
            return {"results": results, "total": job.total, "collection": job.collection, "seq": seq}
        case _:
            return {"items": items, **_of_model(job)}


def _with_vector(item: dict[str, Any], vector: Any) -> dict[str, Any]:
    if np.isfinite(vector).all():
        return {**item, "embedding": vector.tolist()}
    # Stored before workers checked what a model gives.
    error = ItemError("The model gave a vector with NaN. Submit the item again.")
    return {"index": item["index"], "id": item.get("id"), "error": error.as_dict()}


def _of_model(job: Job) -> dict[str, Any]:
    return {"total": job.total, "model": job.model, "model_fingerprint": job.model_fingerprint}


def key_view(key: ApiKey) -> dict[str, Any]:
    return {
        **{name: getattr(key, name) for name in ("id", "tenant", "name", "live")},
        "scopes": sorted(key.scopes),
        **{name: timestamp(getattr(key, name)) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")},
        **{name: getattr(key, name) for name in ("max_queued_items", "max_queued_bytes", "requests_per_s")},
    }


def audit_view(entry: AuditEntry) -> dict[str, Any]:
    named = ("id", "who", "tenant", "action", "what", "address")
    return {**{name: getattr(entry, name) for name in named}, "at": timestamp(entry.created_at)}
