"""Hostile URLs as items and as webhooks, and hostile names in every path: each a problem, and nothing is reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from api.answers import Problem
from api.app import create_app
from revln.settings import Settings
from tests.conftest import DATABASES, fresh_database
from tests.hostile_urls import BY_TEXT, HOSTILE, SECRET, at_port, inside
from tests.inline import InlineStack, inline_stack
from tests.integration.test_http_contract import problem
from tests.receivers import Receiver, running_receiver
from tests.word_model import WordCatalog

STORABLE = [url for url in HOSTILE if len(url) < 4_000 and not re.search("[\x00\ud800-\udfff]", url)]


@pytest.fixture
def canary() -> Iterator[Receiver]:
    """Nothing may ever connect to it."""
    with running_receiver() as running:
        yield running
    assert running.connections == 0


@pytest.fixture(scope="module", params=DATABASES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("hostile")
    with (
        pytest.MonkeyPatch.context() as patch,
        fresh_database(request.param, folder, request) as url,
    ):
        patch.setattr("revln.fetch.guarded.system_resolve", inside)
        with inline_stack(url, folder, WordCatalog(words=16), default_model="words", fetch_urls=True) as running:
            yield running


def test_a_hostile_url_is_one_items_error_and_nothing_is_reached(house: InlineStack, canary: Receiver) -> None:
    fetcher = house.runtime.fetcher
    fetcher.policy = replace(fetcher.policy, ports=(*fetcher.policy.ports, canary.port))
    items: list[dict[str, Any]] = [{"image": {"url": at_port(url, canary.port)}} for url in STORABLE]
    body = {"kind": "embed", "input": {"items": [*items, {"text": "a good one"}]}}
    job = house.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    assert job["counts"] == {"total": len(STORABLE) + 1, "succeeded": 1, "failed": len(STORABLE)}
    for url, item in zip(STORABLE, job["result"]["items"], strict=False):
        assert item["error"]["code"] == "fetch_refused", (url, item)
        assert SECRET not in item["error"]["detail"]
    for url in set(HOSTILE) - set(STORABLE):
        sent = json.dumps({"kind": "embed", "input": {"items": [{"image": {"url": at_port(url, canary.port)}}]}})
        refused = house.http.post("/v1/jobs", content=sent, headers={"Content-Type": "application/json"})
        assert problem(refused, 422, "validation_failed").errors


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/webhooks/test", "/v1/webhooks/enable"])
def test_a_hostile_webhook_is_refused_when_it_is_named(house: InlineStack, canary: Receiver, path: str) -> None:
    """Those by a name are judged when it is looked up, at each try (tests/unit/test_poster.py)."""
    for url in BY_TEXT:
        hook = {"url": at_port(url, canary.port)}
        job = {"kind": "embed", "input": {"items": [{"text": "a"}]}, "webhook": hook}
        sent = json.dumps(job if path == "/v1/jobs" else hook)
        refused = house.http.post(path, content=sent, headers={"Content-Type": "application/json"})
        told = problem(refused, 422, "validation_failed")
        assert told.errors is not None
        assert told.errors[0].pointer == ("/webhook/url" if path == "/v1/jobs" else "/url"), url
        assert SECRET not in told.detail


# --- names in paths ------------------------------------------------------------------------------------------------

NAMES = [
    "..", "../../etc/passwd", "..%2f..%2fetc", "%2e%2e", "\x00", "a\x00b", "%00", "\r\nX: y", "' OR 1=1 --",
    "'; DROP TABLE jobs; --", "\u202egnp.exe", "شبكة", "💥", "é", "e\u0301", "\ufeff", "\\", "a/b", " ", "~", "*", "${jndi:ldap://a}",
    "{{7*7}}", "<script>alert(1)</script>", "0" * 64, "9" * 400, "-1", "NaN", "null", "a" * 5_000, "%ff", "\ud800",
    "00000000-0000-0000-0000-000000000000", "msg_" + "0" * 32,
]  # fmt: skip
_PATHS = create_app(Settings()).openapi()["paths"]
ROUTES = [(verb.upper(), path) for path, verbs in _PATHS.items() for verb in verbs if "{" in path]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)
def test_no_name_in_a_path_does_more_than_name_nothing(house: InlineStack, method: str, path: str) -> None:
    for name in NAMES:
        raw = quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E")  # a client would walk up
        answer = house.http.request(method, re.sub(r"\{\w+\}", lambda _, raw=raw: raw, path), json={})
        if path.startswith("/v1/collections") and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
            assert answer.status_code < 500  # a name like any other
            continue
        assert answer.status_code in (404, 422), (name, answer.text)
        told = Problem.model_validate_json(answer.content)
        assert len(told.detail) < 12_000
        assert "X" not in answer.headers
