"""The outbox: what a job's receiver is to hear of, written in the transaction that changed the job.

So nothing is told of a change that was rolled back, and no change is lost that was committed. A job's ``webhook`` holds
``url``, ``origin`` (the URL's scheme, host and port), ``events``, and ``progress_s``: the least time between two events
of progress.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update
from uuid_utils.compat import uuid7

from revln.db import tables
from revln.db.engine import db_now
from revln.db.jobs.read import Job
from revln.jobs.webhooks import GIVE_UP_S, DeliveryState, WebhookEvent
from revln.timestamps import timestamp

__all__ = ["add_delivery", "forget", "tell"]


def tell(connection: Connection, job: Job, event: str) -> None:
    """Put a change of a locked job into the outbox, if its receiver wants to hear of it."""
    if job.webhook is None:
        return
    if job.status.done:
        connection.execute(delete(tables.deliveries).where(_waiting_progress(job)))  # the end says more
    if event not in job.webhook["events"]:
        return
    data = _data(job)
    if event == WebhookEvent.PROGRESS:
        _tell_progress(connection, job, job.webhook, data)
    else:
        _add_of_job(connection, job, job.webhook, event, data, db_now())


def add_delivery(
    connection: Connection, tenant: str, url: str, origin: str, event: str, data: dict[str, Any], **more: Any
) -> str:
    """Append to the outbox; the delivery's id, which is its webhook-id."""
    delivery_id = f"msg_{uuid7().hex}"
    values = {
        "id": delivery_id,
        "tenant": tenant,
        "type": event,
        "url": url,
        "lane": f"{tenant} {origin}",
        "data": data,
        "state": DeliveryState.PENDING,
        "due_at": db_now(),
        "give_up_at": db_now() + GIVE_UP_S,
        "created_at": db_now(),
        **more,
    }
    connection.execute(insert(tables.deliveries).values(**values))
    return delivery_id


def forget(connection: Connection, job_id: str) -> None:
    """Remove everything that was or would be told of a job."""
    connection.execute(delete(tables.deliveries).where(tables.deliveries.c.job_id == job_id))


def _add_of_job(
    connection: Connection, job: Job, webhook: dict[str, Any], event: str, data: dict[str, Any], due_at: Any
) -> None:
    url, origin = webhook["url"], webhook["origin"]
    add_delivery(connection, job.tenant, url, origin, event, data, job_id=job.id, due_at=due_at)


def _tell_progress(connection: Connection, job: Job, webhook: dict[str, Any], data: dict[str, Any]) -> None:
    """At most one every ``progress_s``, and never two that wait: newer progress takes the place of what waits."""
    columns = tables.deliveries.c
    taken = connection.execute(
        update(tables.deliveries).where(_waiting_progress(job)).values(data=data, created_at=db_now())
    )
    if taken.rowcount:
        return
    # A claim sets due_at to when it was made, so the next one keeps its distance from when this one was really sent.
    now, last = connection.execute(
        select(db_now(), func.max(columns.due_at)).where(
            columns.job_id == job.id, columns.type == WebhookEvent.PROGRESS
        )
    ).one()
    due_at = now if last is None else max(now, last + webhook["progress_s"])
    _add_of_job(connection, job, webhook, WebhookEvent.PROGRESS, data, due_at)


def _waiting_progress(job: Job) -> Any:
    """Not one that is under way: what came of that is still to be written."""
    columns = tables.deliveries.c
    return and_(
        columns.job_id == job.id,
        columns.type == WebhookEvent.PROGRESS,
        columns.state == DeliveryState.PENDING,
        columns.attempts == 0,
    )


def _data(job: Job) -> dict[str, Any]:
    """The job as it is now, named as the API names it. ``version`` orders the events of a job, which may overtake."""
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status.value,
        "done": job.status.done,
        "version": job.version,
        "model": job.model,
        "collection": job.collection,
        "counts": {"total": job.total, "succeeded": job.succeeded, "failed": job.failed},
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "error": job.error,
        "metadata": job.metadata,
    }
