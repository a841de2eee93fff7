"""An API on loopback without any key: open to this machine, shut to web pages, closed by the first key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from revln.access import OWNER, Scope
from revln.db.access.keys import create_key, revoke_key
from tests.conftest import fresh_database
from tests.inline import InlineStack, inline_stack
from tests.integration.test_http_contract import problem
from tests.stack import wait_until
from tests.tenants import client_of
from tests.word_model import WordCatalog

TEXT = {"kind": "embed", "input": {"items": [{"text": "a dog"}]}}


@pytest.fixture
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InlineStack]:
    with fresh_database("sqlite", tmp_path, request) as url, inline_stack(url, tmp_path, WordCatalog(words=8)) as one:
        yield one


def test_it_is_this_machines_and_no_web_pages(house: InlineStack) -> None:
    assert house.http.post("/v1/jobs", json=TEXT).status_code == 202
    for headers in (
        {"Host": "attacker.example"},  # a name that was made to resolve to 127.0.0.1
        {"Host": "attacker.example:8000"},
        {"Host": "[::"},
        {"Origin": "https://attacker.example"},  # a form or a script of a page, which needs no answer to do harm
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        problem(house.http.post("/v1/jobs", json=TEXT, headers=headers), 403, "forbidden")
    for headers in ({"Host": "localhost:80"}, {"Host": "[::1]:80"}, {"Origin": house.url}):
        assert house.http.get("/v1/jobs", headers=headers).status_code == 200


def test_the_first_key_closes_it_and_revoking_that_one_opens_nothing(house: InlineStack) -> None:
    assert house.http.get("/v1/jobs").status_code == 200
    made, text = create_key(house.runtime.db, OWNER, tenant="default", name="first", scopes=[Scope.READ])
    wait_until(lambda: house.http.get("/v1/jobs").status_code == 401, 10, "the closing")
    with client_of(house, text) as http:
        assert http.get("/v1/jobs").status_code == 200
    revoke_key(house.runtime.db, OWNER, made.id, None)
    with client_of(house, text) as http:
        wait_until(lambda: http.get("/v1/jobs").status_code == 401, 10, "the refusal")
    problem(house.http.get("/v1/jobs"), 401, "unauthorized")
