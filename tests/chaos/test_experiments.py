"""The short forms of the experiments. Their full sizes, and limits of time, are asserted by `make chaos`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from revln.db.migrate import upgrade
from revln.settings import Settings
from tests.chaos import catalog  # noqa: F401 - enters the experiments
from tests.chaos.experiment import EXPERIMENTS, Experiment
from tests.chaos.lab import Lab, LabStack
from tests.conftest import fresh_database
from tests.databases import DATABASES
from tests.stack import DEADLINE_S

pytestmark = pytest.mark.slow

_SHORT = [one for one in sorted(EXPERIMENTS, key=lambda one: one.number) if one.short is not None]


def _each(stack: bool) -> list[object]:
    """Each short form on each of its databases; those of one database together, because they share a stack."""
    return [
        pytest.param(database, one, id=f"{one.number}-{database}")
        for database in DATABASES
        for one in _SHORT
        if one.stack is stack and database in one.databases
    ]


def _run(one: Experiment, lab: Lab) -> None:
    assert one.short is not None
    try:
        one.run(lab, **{**one.sizes, **one.short})
        lab.inspect()
    finally:
        lab.close()
        logging.info("experiment %d: %s", one.number, lab.figures)
    assert lab.faults == []


@pytest.mark.parametrize(("lab_stack", "one"), _each(stack=True), indirect=["lab_stack"])
def test_whatever_dies_an_accepted_job_ends_once_with_a_result_for_every_item(
    lab_stack: LabStack, one: Experiment, tmp_path: Path
) -> None:
    lab_stack.heal()  # whatever the one before did to it
    url = lab_stack.settings.resolved_database_url
    lab = Lab(tmp_path, url, f"short {one.number}", patience_s=DEADLINE_S, timed=False)
    lab.use(stack=lab_stack)
    _run(one, lab)


@pytest.mark.parametrize(("database", "one"), _each(stack=False))
def test_what_needs_no_stack_holds_too(
    database: str, one: Experiment, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with fresh_database(database, tmp_path, request) as url:
        upgrade(Settings(database_url=url))
        _run(one, Lab(tmp_path, url, f"short {one.number}", patience_s=DEADLINE_S, timed=False))
