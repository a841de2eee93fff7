"""Builds that nobody asked for: an index job like any other, so that it is leased, fenced, retried and seen."""

from __future__ import annotations

import logging
import time
from typing import Any

from uuid_utils.compat import uuid7

from revln.access import Caller
from revln.db.collections.collections import Collection
from revln.db.collections.snapshots import long_tails
from revln.db.engine import Database
from revln.db.jobs.submit import Inline, NewChunk, NewJob, submit_job
from revln.jobs.kinds import KINDS, Priority, queue_name
from revln.settings import Settings

__all__ = ["ask_for_build", "ask_for_builds"]

log = logging.getLogger(__name__)

_TAIL_SHARE = 0.2  # of a large collection, so that it is built a number of times that grows with its logarithm
_AGAIN_S = 3_600  # a build that failed is asked for again after this


def ask_for_builds(db: Database, settings: Settings) -> None:
    """Have a snapshot built of every collection whose log has grown far past its newest one."""
    if not settings.index_tail_rows:
        return
    with db.read() as connection:
        grown = long_tails(connection, settings.index_tail_rows, _TAIL_SHARE)
    for collection, newest in grown:
        ask_for_build(db, settings, collection, f"grown past {newest or 'nothing'}", type="auto")


def ask_for_build(db: Database, settings: Settings, collection: Collection, why: str, *, type: str) -> None:
    """Submit a build once for each reason and hour, whoever asks and however often."""
    kind = KINDS["index"]
    parameters: dict[str, Any] = {"collection": collection.name, "operation": "build", "index": {"type": type}}
    job, new = submit_job(
        db,
        NewJob(
            id=str(uuid7()),
            by=Caller(collection.tenant, "worker", frozenset()),
            kind=kind.name,
            priority=Priority.BULK,
            queue=queue_name(kind.name, Priority.BULK),
            max_attempts=kind.max_attempts,
            input=parameters,
            total=1,
            chunks=[NewChunk(0, 1, Inline([None]))],
            metadata={"tag": "index-build", "reason": why},
            tag="index-build",
            retention_s=settings.retention_s,
            model=collection.model or None,
            model_fingerprint=collection.model_fingerprint,
            collection=collection.name,
            # It has no request whose hash could be compared; the key says it all.
            idempotency_key=f"index-build {collection.id} {why} {int(time.time() // _AGAIN_S)}",
        ),
    )
    if new:
        log.info("job %s builds an index of collection %s: %s", job.id, collection.name, why)
