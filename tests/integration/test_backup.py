"""The commands of docs/guarantees.md, run as they stand: backed up while jobs run, restored elsewhere, gone on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from sqlalchemy import select, update
from sqlalchemy.engine import make_url

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs import sweep
from revln.db.migrate import upgrade
from revln.settings import Settings
from tests.builders import make_job, take
from tests.chaos.invariants import violations
from tests.conftest import fresh_database
from tests.databases import postgresql_programs
from tests.inline import InlineStack, inline_stack
from tests.pictures import png
from tests.stack import wait_until
from tests.word_model import WordCatalog

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/guarantees.md").read_text()
WAYS = ["sqlite", "python", "postgresql"]


def commands(way: str, step: str) -> str:
    """What the documentation says, of one way to back up."""
    (found,) = re.findall(rf"<!-- {way}: {step} -->\n```console\n(.*?)```", DOCUMENT, re.DOTALL)
    lines = [line.removeprefix("$ ") for line in found.splitlines() if line.startswith("$ ")]
    assert lines
    return "\n".join(lines)


def run(way: str, step: str, data: Path, backup: Path, url: str) -> None:
    """In a shell, with the document's variables."""
    folder = Path(sys.executable).parent
    env = {**os.environ, "DATA": str(data), "BACKUP": str(backup), "PATH": f"{folder}:{os.environ['PATH']}"}
    if way == "postgresql":
        env["PATH"] = f"{postgresql_programs()}:{env['PATH']}"
        env["DATABASE"] = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    script = "set -e\n" + commands(way, step)
    done = subprocess.run(["bash", "-c", script], check=False, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextmanager
def submitting(house: InlineStack) -> Iterator[list[str]]:
    """Jobs that keep coming in; the ids of those that were accepted."""
    accepted: list[str] = []
    stop = Event()

    def go_on() -> None:
        while not stop.is_set():
            number = len(accepted)
            image = house.http.post("/v1/images", content=png(seed=number)).json()["sha256"]
            items = [{"text": f"word{number}"}, {"image": {"sha256": image}}]
            answer = house.http.post("/v1/jobs", json={"kind": "embed", "input": {"items": items}})
            assert answer.status_code == 202
            accepted.append(answer.json()["id"])

    thread = Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield accepted
    finally:
        stop.set()
        thread.join(timeout=20)


def left_by_a_worker_that_died(url: str) -> str:
    """A job of which one chunk runs and one is queued."""
    upgrade(Settings(database_url=url))
    db = Database(url)
    job = make_job(db, 2, model="words", model_fingerprint="words-16")
    take(db, job, 0, "gone", lease_s=3_600)
    db.close()
    return job.id


def ended(url: str) -> dict[str, float]:
    db, columns = Database(url), tables.jobs.c
    with db.read() as connection:
        query = select(columns.id, columns.finished_at).where(columns.finished_at.is_not(None))
        found = {row.id: row.finished_at for row in connection.execute(query)}
    db.close()
    return found


def everything(url: str) -> set[str]:
    db = Database(url)
    with db.read() as connection:
        found = set(connection.scalars(select(tables.jobs.c.id)))
    db.close()
    return found


def recover(url: str) -> None:
    """As a sweeper does once the leases have run out."""
    db, columns = Database(url), tables.chunks.c
    with db.write() as connection:
        connection.execute(update(tables.chunks).where(columns.state == "running").values(lease_until=db_now() - 1))
    assert sweep.recover_lost_chunks(db, 3)
    db.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_backup_made_while_jobs_run_is_restored_and_every_accepted_job_ends_once(
    way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "sqlite" and shutil.which("sqlite3") is None:
        pytest.skip("the sqlite3 command is not installed here")
    kind = "postgresql" if way == "postgresql" else "sqlite"
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    for folder in (old, new, backup):
        folder.mkdir()
    models = WordCatalog(words=16)
    with fresh_database(kind, old, request) as url:
        left = left_by_a_worker_that_died(url)
        with inline_stack(url, old, models, default_model="words") as house, submitting(house) as accepted:
            wait_until(lambda: len(ended(url)) > 3, what="some jobs to end")
            before, done = [left, *accepted], ended(url)
            run(way, "backup", old, backup, url)
    with fresh_database(kind, new, request) as url:
        run(way, "restore", new, backup, url)
        assert set(done) <= set(ended(url)), "what had ended is there, and has"
        recover(url)
        with inline_stack(url, new, models, default_model="words") as house:
            db = house.runtime.db
            wait_until(lambda: set(before) <= set(ended(url)) == everything(url), what="every job to end")
            assert violations(db, house.runtime.blobs, before) == []
            after = ended(url)
            assert {job: after[job] for job in done} == done, "what had ended was not run again"
            with db.read() as connection:
                counts = select(tables.jobs.c.status, tables.jobs.c.failed).distinct()
                assert [tuple(row) for row in connection.execute(counts)] == [("succeeded", 0)]
