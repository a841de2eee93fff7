"""Rows that tests start from."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import update

from revln.access import OWNER
from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.chunks import ChunkResult, Claim, claim_chunk
from revln.db.jobs.read import Job
from revln.db.jobs.submit import Inline, NewChunk, NewJob, submit_job
from revln.jobs.kinds import KINDS

__all__ = ["let_backoffs_end", "let_leases_run_out", "make_job", "ok_result", "take"]


def make_job(db: Database, n_items: int = 3, chunk_items: int = 1, **changes: Any) -> Job:
    """A committed embed job of text items."""
    items = [{"id": f"item-{i}", "text": f"text {i}"} for i in range(n_items)]
    values: dict[str, Any] = {
        "id": str(uuid4()),
        "by": OWNER,
        "kind": "embed",
        "priority": "normal",
        "queue": "embed.normal",
        "max_attempts": KINDS["embed"].max_attempts,
        "input": {},
        "total": n_items,
        "chunks": [
            NewChunk(at, len(items[at : at + chunk_items]), Inline(items[at : at + chunk_items]))
            for at in range(0, n_items, chunk_items)
        ],
        "metadata": {},
        "retention_s": 3600.0,
        "model": "revln-tiny",
        "model_fingerprint": "revln-test",
    }
    return submit_job(db, NewJob(**{**values, **changes}))[0]


def take(db: Database, job: Job, number: int = 0, worker: str = "w1", lease_s: float = 30.0) -> Claim:
    claim = claim_chunk(db, job.id, number, worker, lease_s)
    assert claim is not None
    return claim


def let_leases_run_out(db: Database) -> None:
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(lease_until=db_now() - 1))


def let_backoffs_end(db: Database) -> None:
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(run_at=db_now() - 1))


def ok_result(claim: Claim, failed: int = 0) -> ChunkResult:
    """Every item done, but for the last ``failed`` ones."""
    error = {"code": "item_failed", "detail": "bad", "retryable": False}
    return ChunkResult(
        [
            {"index": claim.first_index + at, "id": None, **({"error": error} if at >= claim.n_items - failed else {})}
            for at in range(claim.n_items)
        ]
    )
