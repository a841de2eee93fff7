"""A worker that starts before its database answers, or that cannot start at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.signals import worker_shutting_down
from sqlalchemy import select

from revln.db import tables
from revln.db.migrate import upgrade
from revln.errors import StartupError
from revln.jobs.kinds import all_queues
from revln.settings import Settings
from tests.stack import wait_until
from worker import main
from worker.models import loading
from worker.runtime import Runtime


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(loading, "choose_device", lambda _: "cpu")  # the only thing for which torch would be imported
    return Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", lease_s=1.0, heartbeat_s=0.3)


def test_a_worker_that_starts_before_its_database_answers_registers_when_it_does(settings: Settings) -> None:
    runtime = Runtime(settings, all_queues())
    runtime.start()
    try:
        upgrade(settings)

        def registered() -> list[str]:
            with runtime.db.read() as connection:
                return list(connection.scalars(select(tables.workers.c.id)))

        assert wait_until(registered, what="the worker's row") == [runtime.worker_id]
    finally:
        runtime.stop()


def test_a_worker_on_a_database_without_tables_says_what_to_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.data_dir.joinpath("revln.db").touch()
    monkeypatch.setattr(main, "configure_logging", lambda _: None)
    with pytest.raises(StartupError, match="Run `revln db upgrade` first"):
        main.run(settings)


def test_a_worker_that_cannot_start_ends_instead_of_running_without_leases(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Runtime) -> None:
        raise OSError("no more threads")

    upgrade(settings)
    monkeypatch.setattr(Runtime, "start", fail)
    monkeypatch.setattr(main, "configure_logging", lambda _: None)
    before = list(worker_shutting_down.receivers or ())
    try:
        with pytest.raises(OSError, match="no more threads"):
            main.run(settings)
    finally:
        worker_shutting_down.receivers[:] = before
