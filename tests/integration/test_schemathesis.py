"""schemathesis against the real application: what openapi.json promises is kept, whatever is sent.

It sends what each parameter's and field's schema allows and forbids, follows what a route makes to the routes that read
it, and leaves out the key. What is held of the answers, and where not, is in tests/schemathesis.toml. For more of it:
SCHEMATHESIS_EXAMPLES=200, on both databases, of a new seed each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from revln import embedded_redis
from revln.db.workers import WorkerRow, register
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.stack import wait_until
from tests.tenants import BOOTSTRAP
from tests.word_model import WordCatalog

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "0"))
CONFIG = Path(__file__).parents[1] / "schemathesis.toml"


@pytest.fixture(params=DATABASES if EXAMPLES else ["postgresql"])  # the stricter of the two
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InlineStack]:
    redis = embedded_redis.prepare(tmp_path)
    with (
        _serving(redis),
        fresh_database(request.param, tmp_path, request) as url,
        inline_stack(url, tmp_path, WordCatalog(words=16), default_model="words", api_key=BOOTSTRAP, max_wait_s=0.1,
                     redis_url=redis.url, webhook_timeout_s=0.1) as running,
    ):  # fmt: skip
        running.api_state.canary_s = 0.05  # nobody answers it here
        # One that an order to load a model can be given to.
        register(running.runtime.db, WorkerRow("worker", "host", 1, [], "cpu", []))
        yield running


@contextmanager
def _serving(redis: embedded_redis.EmbeddedRedis) -> Iterator[None]:
    process = subprocess.Popen(redis.command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: not embedded_redis.ping(redis.url), what="Redis")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(600 + 60 * EXAMPLES)
def test_the_api_keeps_what_its_openapi_document_promises(house: InlineStack, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    how = ["--max-examples", str(EXAMPLES)] if EXAMPLES else ["--phases", "examples,coverage,stateful", "--seed", "1",
                                                             "--max-examples", "10"]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "run", f"{house.url}/openapi.json",
         "--header", f"Authorization: Bearer {BOOTSTRAP}", "--no-color", "--report-json-path", report, *how],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONFIG.parents[1])},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(report.read_text())
    assert told["operations"]["tested"] == told["operations"]["total"] > 40
    assert told["test_cases"]["generated"] > 1_000
