"""Uploads go when nothing needs them, never before, wherever the work is cut off."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select, text, update

from revln import uploads as uploads_module
from revln.access import OWNER, Caller
from revln.blobs import BlobStore
from revln.db import tables
from revln.db.collections.log import LogEntry, append_log
from revln.db.embeddings import cached_vectors, store_vectors
from revln.db.engine import Database, db_now
from revln.db.jobs.changes import cancel_job, delete_job
from revln.db.jobs.chunks import finish_chunk
from revln.db.uploads.uploads import hold_uploads
from revln.errors import Conflict, NotFound
from revln.uploads import Uploads
from tests.builders import make_job, ok_result, take
from tests.collections import make_collection
from tests.stack import wait_until

OTHER = replace(OWNER, tenant="zoo")
DAY = 86_400.0
NOW = timedelta(0)  # how young a file without an owner may be


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


@pytest.fixture
def uploads(db: Database, blobs: BlobStore) -> Uploads:
    return Uploads(db, blobs)


def put(uploads: Uploads, data: bytes = b"picture", by: Caller = OWNER) -> str:
    uploads.put(by.tenant, [data])
    return hashlib.sha256(data).hexdigest()


def put_manifest(uploads: Uploads, blobs: BlobStore, data: bytes = b'{"text": "one"}\n') -> str:
    with blobs.writer("manifests") as writer:
        writer.write(data)
        return uploads.commit(OWNER.tenant, "manifest", writer)[0]


def grow_old(db: Database, days: float = 2) -> None:
    with db.write() as connection:
        connection.execute(update(tables.uploads).values(last_used_at=db_now() - days * DAY))


def expire(db: Database, uploads: Uploads) -> None:
    grow_old(db)
    while uploads.expire(DAY, 10):
        pass


def has(db: Database, blobs: BlobStore, sha256: str, kind: str = "image") -> tuple[bool, bool]:
    """Whether there is a row, and whether there are bytes."""
    with db.read() as connection:
        found = connection.scalar(select(tables.uploads.c.sha256).where(tables.uploads.c.sha256 == sha256).limit(1))
    return found is not None, blobs.exists(sha256, f"{kind}s")


def finish(db: Database, job: Any, failed: int = 0) -> None:
    finish_chunk(db, claim := take(db, job), lambda _: ok_result(claim, failed))


def test_what_was_not_used_for_long_goes_with_its_bytes_and_what_was_stays(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    old, manifest = put(uploads), put_manifest(uploads, blobs)
    grow_old(db)
    young = put(uploads, b"young")
    assert uploads.expire(DAY, 10) == 2
    assert uploads.expire(DAY, 10) == 0
    assert has(db, blobs, old) == has(db, blobs, manifest, "manifest") == (False, False)
    assert has(db, blobs, young) == (True, True)


def test_a_second_upload_makes_the_first_young_again(db: Database, blobs: BlobStore, uploads: Uploads) -> None:
    sha256 = put(uploads)
    grow_old(db)
    put(uploads)
    assert uploads.expire(DAY, 10) == 0
    assert has(db, blobs, sha256) == (True, True)


def test_a_job_keeps_what_it_names_until_it_is_done_with_it(db: Database, blobs: BlobStore, uploads: Uploads) -> None:
    image, manifest = put(uploads), put_manifest(uploads, blobs)
    job = make_job(db, 1, images=[image], manifest=manifest)
    expire(db, uploads)
    assert has(db, blobs, image) == has(db, blobs, manifest, "manifest") == (True, True)
    for kind, sha256 in (("image", image), ("manifest", manifest)):
        with pytest.raises(Conflict, match=job.id):
            uploads.delete(OWNER, kind, sha256)  # type: ignore[arg-type]
    finish(db, job)
    expire(db, uploads)
    assert has(db, blobs, image) == has(db, blobs, manifest, "manifest") == (False, False)


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_a_job_that_may_be_retried_keeps_what_it_names_until_it_is_deleted(
    db: Database, blobs: BlobStore, uploads: Uploads, end: str
) -> None:
    sha256 = put(uploads)
    job = make_job(db, 2, 2, images=[sha256])
    if end == "failed":
        finish(db, job, failed=1)
    else:
        cancel_job(db, job.id, OWNER)
    expire(db, uploads)
    assert has(db, blobs, sha256) == (True, True)
    delete_job(db, job.id, OWNER)
    uploads.delete(OWNER, "image", sha256)
    assert has(db, blobs, sha256) == (False, False)


def test_a_picture_that_comes_after_the_job_that_names_it_is_kept_for_it(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    make_job(db, 1, images=[hashlib.sha256(b"late").hexdigest()])
    sha256 = put(uploads, b"late")
    expire(db, uploads)
    assert has(db, blobs, sha256) == (True, True)


def test_an_open_job_with_a_manifest_keeps_all_pictures_of_its_tenant_and_of_no_other(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    mine, theirs = put(uploads), put(uploads, b"theirs", OTHER)
    job = make_job(db, 1, manifest=put_manifest(uploads, blobs))
    expire(db, uploads)
    assert (has(db, blobs, mine), has(db, blobs, theirs)) == ((True, True), (False, False))
    with pytest.raises(Conflict, match=job.id):
        uploads.delete(OWNER, "image", mine)
    finish(db, job, failed=1)
    uploads.delete(OWNER, "image", mine)
    assert has(db, blobs, mine) == (False, False)


def test_a_live_item_keeps_its_picture_and_a_deleted_one_does_not(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    sha256, collection = put(uploads), make_collection(db, 1)
    entry = LogEntry("upsert", "a", vector=b"\0\0\x80?", image_sha256=sha256)
    with db.write() as connection:
        append_log(connection, collection.id, [entry])
    expire(db, uploads)
    assert has(db, blobs, sha256) == (True, True)
    with pytest.raises(Conflict, match="collection 'c'"):
        uploads.delete(OWNER, "image", sha256)
    with db.write() as connection:
        append_log(connection, collection.id, [LogEntry("delete", "a")])
    uploads.delete(OWNER, "image", sha256)
    assert has(db, blobs, sha256) == (False, False)


def test_bytes_go_with_their_last_owner_and_so_do_the_vectors_made_of_them(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    sha256 = put(uploads)
    put(uploads, by=OTHER)
    key, others = f"image:{sha256}", "text:" + "0" * 64
    for fingerprint in ("a", "b"):
        store_vectors(db, fingerprint, {key: b"1234", others: b"5678"})
    uploads.delete(OTHER, "image", sha256)
    assert blobs.exists(sha256)
    with pytest.raises(NotFound):
        uploads.delete(OTHER, "image", sha256)
    assert _cached(db, key) == [key, key]
    uploads.delete(OWNER, "image", sha256)
    assert not blobs.exists(sha256)
    assert (_cached(db, key), len(_cached(db, others))) == ([], 2)
    with db.read() as connection:
        rows = connection.execute(select(tables.audit.c.tenant, tables.audit.c.action, tables.audit.c.what)).all()
    assert [tuple(row) for row in rows] == [("zoo", "image.delete", sha256), ("default", "image.delete", sha256)]


def _cached(db: Database, key: str) -> list[str]:
    with db.read() as connection:
        return [found for name in ("a", "b") for found in cached_vectors(connection, name, [key])]


def test_a_job_whose_manifest_goes_as_it_comes_in_is_refused(db: Database, blobs: BlobStore, uploads: Uploads) -> None:
    manifest = put_manifest(uploads, blobs)
    uploads.delete(OWNER, "manifest", manifest)
    with pytest.raises(NotFound, match=manifest):
        make_job(db, 1, manifest=manifest)
    with db.read() as connection:
        assert connection.execute(select(tables.jobs)).all() == []


class Killed(BaseException):
    """As far as what follows goes, the process is gone."""


@pytest.mark.parametrize("step", ["add_uploads", "put"])
def test_an_upload_that_is_cut_off_anywhere_can_be_made_again_and_leaves_nothing_for_long(
    db: Database, blobs: BlobStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    where = (uploads_module, "add_uploads") if step == "add_uploads" else (blobs, "put")
    with monkeypatch.context() as patch:
        patch.setattr(*where, _killed)
        with pytest.raises(Killed):
            put(uploads)
    sha256 = hashlib.sha256(b"picture").hexdigest()
    assert not blobs.exists(sha256), "the row comes first"
    put(uploads)
    assert uploads.collect(NOW) == 0
    assert has(db, blobs, sha256) == (True, True)


def _killed(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.mark.parametrize("step", ["expire_uploads", "remove_ownerless"])
def test_an_end_that_is_cut_off_anywhere_is_finished_by_the_next(
    db: Database, blobs: BlobStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sha256 = put(uploads)
    grow_old(db)
    with monkeypatch.context() as patch:
        patch.setattr(uploads_module, step, _killed)
        with pytest.raises(Killed):
            uploads.expire(DAY, 10)
    assert has(db, blobs, sha256) == (step == "expire_uploads", True)
    uploads.expire(DAY, 10)
    assert uploads.collect(timedelta(hours=1)) == 0, "young bytes may belong to an upload of an older version"
    uploads.collect(NOW)
    assert has(db, blobs, sha256) == (False, False)


def test_an_upload_between_the_look_for_owners_and_the_deletion_keeps_the_bytes(
    db: Database, blobs: BlobStore, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = blobs.put(b"picture")
    ownerless = uploads_module.ownerless

    def put_after(connection: Any, kind: Any, sha256s: Any) -> Any:
        found = ownerless(connection, kind, sha256s)
        put(Uploads(db, blobs))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(uploads_module, "ownerless", put_after)
        assert uploads.collect(NOW) == 0
    assert has(db, blobs, sha256) == (True, True)


def test_uploads_jobs_and_collectors_beside_each_other_never_lose_what_was_acknowledged(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    """The same pictures over and over: put and named by some, taken away by others whenever nothing needs them."""
    rounds, start = 12, Barrier(4)

    def name_it(which: int) -> int:
        start.wait()
        kept = 0
        for _ in range(rounds):
            sha256 = put(uploads, bytes([which]))
            job = make_job(db, 1, images=[sha256])
            # From here on it must be there, unless it went between the upload and the submission.
            before = has(db, blobs, sha256)[0]
            kept += before
            if before:
                assert has(db, blobs, sha256) == (True, True), "an upload went under a job"
            finish(db, job)
        return kept

    def take_it_away(which: int) -> int:
        start.wait()
        for _ in range(rounds * 3):
            grow_old(db) if which else None
            uploads.expire(DAY, 10) if which else uploads.collect(NOW)
        return 0

    with ThreadPoolExecutor(4) as pool:
        namers, takers = pool.map(name_it, range(2)), pool.map(take_it_away, range(2))
        assert sum(namers) > 0
        assert list(takers) == [0, 0]


def test_who_takes_uploads_away_waits_for_a_job_that_is_being_accepted(
    db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    sha256, job = put(uploads), make_job(db, 1)
    grow_old(db)
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

    def waits() -> bool:
        if db.is_sqlite:  # there is only one who writes
            return True
        with db.read() as connection:
            return bool(connection.scalar(waiting))

    with ThreadPoolExecutor(1) as pool:
        with db.write() as connection:
            hold_uploads(connection, job.id, OWNER.tenant, "image", [sha256])
            expired = pool.submit(uploads.expire, DAY, 10)
            wait_until(lambda: expired.done() or waits(), what="the collector to come by")
        expired.result()
    assert has(db, blobs, sha256) == (True, True)


def test_what_was_stored_before_there_were_tenants_is_given_its_owner_once(
    db: Database, blobs: BlobStore, tmp_path: Path
) -> None:
    sha256 = blobs.put(b"picture")
    with db.write() as connection:
        connection.execute(update(tables.tenants).values(created_at=db_now() + 60))
    uploads = Uploads(db, blobs)
    assert uploads.collect(NOW) == 0
    assert has(db, blobs, sha256) == (True, True)
    put(uploads, by=OTHER)
    uploads.delete(OWNER, "image", sha256)
    assert uploads.of(OWNER.tenant, "image", [sha256]) == set(), "it is not given back because another one has it"
    uploads.delete(OTHER, "image", sha256)
    assert has(db, blobs, sha256) == (False, False)


def test_jobs_of_before_the_migration_keep_what_their_bodies_and_manifests_name(
    database_url: str, db: Database, blobs: BlobStore, uploads: Uploads
) -> None:
    from alembic import command

    from revln.db.migrate import alembic_config, upgrade
    from revln.settings import Settings

    image, manifest = put(uploads), put_manifest(uploads, blobs)
    job = make_job(db, 1, input={"manifest": {"sha256": manifest}})
    query = [[{"image": {"sha256": image}}, {"text": "not", "weight": -1}], {"metadata": {"sha256": "no"}}]
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(items=query))
    command.downgrade(alembic_config(database_url), "0009")
    grow_old(db, 400)
    upgrade(Settings(database_url=database_url))
    with db.read() as connection:
        named = connection.execute(select(tables.job_uploads).order_by(tables.job_uploads.c.kind)).all()
        used = connection.scalars(select(tables.uploads.c.last_used_at > db_now() - 60)).all()
    assert [tuple(row) for row in named] == [(job.id, "image", image), (job.id, "manifest", manifest)]
    assert all(used), "the time of keeping begins with the migration"
