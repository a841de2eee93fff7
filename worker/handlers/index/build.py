"""build: a new snapshot of the collection's index, made beside the one that is served and put in its place."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection

from revln.db.collections.collections import Collection
from revln.db.collections.snapshots import Made, Snapshot, abandon_build, begin_build, publish, renew_build
from revln.errors import JobError, NotFound, RevlnError, Unavailable
from revln.jobs.index_schemas import BuildParameters
from worker.context import Context, Done, Outcome
from worker.handlers.index.collection import open_serving
from worker.index.build_client import builder_process
from worker.index.build_process import Order

__all__ = ["run_build"]

log = logging.getLogger(__name__)

_POLL_S = 0.5
_TURN_S = 2.0
_ERRORS: dict[str, type[RevlnError]] = {each.code: each for each in (JobError, NotFound, Unavailable)}


def run_build(context: Context[BuildParameters]) -> Done:
    collection = open_serving(context)
    settings = context.runtime.settings
    asked = context.parameters.index
    order = Order(
        collection.id,
        collection.dim,
        flat_rows=settings.index_flat_rows,
        memory_bytes=settings.index_memory_bytes,
        recall=settings.index_recall if asked.recall is None else asked.recall,
        type=None if asked.type == "auto" else asked.type,
        lists=asked.lists,
        links=asked.links,
    )
    snapshot_id = _turn(context, collection)
    try:
        made = _built(context, snapshot_id, order)
    except BaseException:
        _abandon(context, snapshot_id)
        raise

    def apply(connection: Connection, outcomes: list[Outcome]) -> list[Outcome]:
        snapshot = publish(connection, collection.id, snapshot_id, made, settings.index_snapshots)
        return [replace(outcome, fields={"snapshot": _shown(snapshot)}) for outcome in outcomes]

    return Done([Outcome(todo.index) for todo in context.todo], apply)


def _abandon(context: Context[Any], snapshot_id: str) -> None:
    try:
        abandon_build(context.runtime.db, snapshot_id)
    except RevlnError as err:  # its lease runs out by itself
        log.warning("snapshot %s: %s", snapshot_id, err)


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    shown = asdict(snapshot)
    for inner in ("collection_id", "state", "created_at", "sha256"):
        del shown[inner]
    return shown


def _turn(context: Context[Any], collection: Collection) -> str:
    """Become the collection's only builder, however long another one takes."""
    while True:
        begun = begin_build(context.runtime.db, collection.id, context.job.id, context.runtime.settings.lease_s)
        if begun is not None:
            return begun
        context.lease.check()
        context.lease.progress()
        time.sleep(_TURN_S)


def _built(context: Context[Any], snapshot_id: str, order: Order) -> Made:
    """Have the builder's process make it, keeping both leases meanwhile."""
    settings = context.runtime.settings
    renew_at = 0.0
    with builder_process(settings, order) as said:
        while True:
            context.lease.check()
            if time.monotonic() >= renew_at:
                renew_build(context.runtime.db, snapshot_id, settings.lease_s)
                renew_at = time.monotonic() + settings.heartbeat_s
            line = said(_POLL_S)
            if line is None:
                continue
            context.lease.progress()
            if "made" in line:
                return Made(**line["made"])
            if "error" in line:
                raise _ERRORS.get(line["error"]["code"], RevlnError)(line["error"]["message"])
            log.info("snapshot %s of %s: %s", snapshot_id, context.job.collection, line["step"])
