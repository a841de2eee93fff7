"""Real parts for every test: databases, checkpoints, whole stacks. Nothing here stands in for anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

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
            return _shared(*nodeid.split("::", 1))

    return Scheduling(config, log)


def _shared(file: str, test: str) -> str:
    """By name, what a test shares with others. Those of chaos/ share nothing and take long: each goes where room is."""
    if file.startswith("tests/chaos/"):
        return f"{file}::{test}"
    database = re.search(r"\[(sqlite|postgresql)\b", test)
    used = re.search(r"\b(stack: Stack|inline: InlineStack)\b", _text(file))
    return f"{used[1]} on {database[1]}" if used and database else file


@cache
def _text(file: str) -> str:
    return (Path(__file__).parents[1] / file).read_text()


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of a real PostgreSQL 16, started once for the session."""
    given = os.environ.get("TEST_POSTGRESQL_URL")
    if given:
        yield given
        return
    with postgresql_server() as server:
        yield server.url


def fresh_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> AbstractContextManager[str]:
    """The URL of an empty database that is dropped afterwards."""
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


@pytest.fixture(scope="session", params=DATABASES)
def inline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    """revln in this process, on each database."""
    folder = tmp_path_factory.mktemp("inline")
    with fresh_database(request.param, folder, request) as url, inline_stack(url, folder) as running:
        yield running


# Shared by all tests that leave it whole.
stack = pytest.fixture(scope="session", params=DATABASES, name="stack")(_stack)
