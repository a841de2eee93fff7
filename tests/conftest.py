"""Real parts for every test: databases, checkpoints, whole stacks. Nothing here stands in for anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.settings import Settings
from tests import databases
from tests.databases import DATABASES, postgresql_server
from tests.inline import InlineStack, inline_stack
from tests.stack import Stack, running_stack

# Nothing under test may reach out for a model.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item in marked if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """In several processes, what shares something costly runs in one of them: a file, all tests of one stack."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Scheduling(config, log)


# Not xdist's marks (`xdist_group`): with pytest 9.2 they do nothing, as xdist 3.8 writes them into an attribute that is
# gone. A scheduler knows tests by their names alone, so a fixture's parameter says there what is shared.
def shared_on(what: str) -> list[Any]:
    """The databases, for a fixture of the session: the tests that share it on one of them are a group."""
    return [pytest.param(kind, id=f"{what} on {kind}") for kind in DATABASES]


def group_of(nodeid: str) -> str:
    """What a test shares with others. Those of chaos/ share nothing and take long: each goes where room is."""
    file, _, test = nodeid.partition("::")
    if file.startswith("tests/chaos/"):
        return nodeid
    shared = re.search(r"\b(?:stack|inline) on \w+", test)
    return shared[0] if shared else file


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a real PostgreSQL 18, started once for the session."""
    given = os.environ.get("TEST_POSTGRESQL_URL")
    if given:
        yield given
        return
    with postgresql_server() as server:
        yield server.url


def fresh_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> AbstractContextManager[str]:
    """The URL of an empty database that is dropped afterwards."""
    if kind not in DATABASES:
        pytest.skip(f"TEST_DATABASES leaves {kind} out")
    return databases.fresh_database(kind, folder, lambda: request.getfixturevalue("postgresql_url"))


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, migrated database of each kind."""
    with fresh_database(request.param, tmp_path, request) as url:
        upgrade(Settings(database_url=url))
        yield url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A revln checkpoint with random weights and small networks: real code, no waiting for arithmetic."""
    import torch

    from revln.models.revln.card import RevlnConfig
    from revln.models.revln.net import RevlnNet
    from revln.models.revln.tokenizer import train_tokenizer
    from revln.training.export import export
    from revln.training.options import TrainOptions

    out = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["a black dog runs", "two men play a guitar outside", "a child", "snow"], 400)
    config = RevlnConfig(
        image_size=64, trunk="mobilenet_v2", dim=32, vocab_size=tokenizer.size, text_embedding=16, text_hidden=24,
        caption_width=32, caption_layers=2, caption_inner=64,
    )  # fmt: skip
    torch.manual_seed(0)
    net = RevlnNet(config)
    with torch.no_grad():
        # An untrained trunk sees all pictures alike; the norm of what it sees spreads its features again.
        noise = torch.rand(32, 3, 1, 1) * 2 - 1 + 0.5 * torch.randn(32, 3, 64, 64)
        net.eval()
        places = net.image.places(noise).flatten(0, 1)
        net.image.pool.norm.running_mean.copy_(places.mean(0))
        net.image.pool.norm.running_var.copy_(places.var(0))
    export(out, config, net, tokenizer, TrainOptions(data=out, images=out, out=out))
    return out


@contextmanager
def small_stack(
    kind: str, folder: Path, request: pytest.FixtureRequest, checkpoint: Path, **settings: object
) -> Iterator[Stack]:
    folder.mkdir(parents=True, exist_ok=True)
    models = json.dumps({"revln-tiny": {"source": str(checkpoint)}})
    with (
        fresh_database(kind, folder, request) as url,
        running_stack(folder, database_url=url, models=models, **settings) as stack,
    ):
        yield stack


def _stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path
) -> Iterator[Stack]:
    """Redis, API and a worker on each database, with a small random model."""
    with small_stack(request.param, tmp_path_factory.mktemp("stack"), request, small_checkpoint) as running:
        yield running


@pytest.fixture(scope="session", params=shared_on("inline"))
def inline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    """revln in this process, on each database."""
    folder = tmp_path_factory.mktemp("inline")
    with fresh_database(request.param, folder, request) as url, inline_stack(url, folder) as running:
        yield running


# Shared by all tests that leave it whole.
stack = pytest.fixture(scope="session", params=shared_on("stack"), name="stack")(_stack)
