"""A stack for each database, shared by all tests here that break it and have it healed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.lab import Lab, LabStack
from tests.chaos.zygote import Zygote
from tests.conftest import fresh_database
from tests.databases import DATABASES
from tests.stack import DEADLINE_S, running


@pytest.fixture(scope="package")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="package", params=DATABASES)
def lab_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote
) -> Iterator[LabStack]:
    folder = tmp_path_factory.mktemp("stack")
    with (
        fresh_database(request.param, folder, request) as url,
        # What single experiments ask for: as many chunks at once as the largest batch, and URLs that are fetched.
        running(LabStack(folder, zygote, quick=True, database_url=url, concurrency=12, fetch_urls=True)) as stack,
    ):
        yield stack


@pytest.fixture
def lab(lab_stack: LabStack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The shared stack, healed; the invariants are looked at afterwards."""
    lab_stack.heal()
    lab = Lab(tmp_path, lab_stack.settings.resolved_database_url, request.node.name, patience_s=DEADLINE_S)
    lab.use(stack=lab_stack)
    yield lab
    lab.inspect()
    lab.close()
    assert lab.faults == []
