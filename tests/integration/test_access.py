"""Keys over HTTP: scopes, expiry, rotation, revocation; what is written of it, and what is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import event

from revln.access import Caller
from revln.db.access.keys import create_key
from revln.db.jobs.submit import NewJob, submit_job
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.integration.test_http_contract import problem
from tests.pictures import png
from tests.stack import DEADLINE_S, wait_until
from tests.tenants import BOOTSTRAP, client_of, make_key
from tests.word_model import WordCatalog

TEXT = {"kind": "embed", "input": {"items": [{"text": "a dog"}]}}


@pytest.fixture(scope="module", params=DATABASES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("access")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, WordCatalog(words=16), default_model="words", api_key=BOOTSTRAP,
                     cors_origins="https://app.example") as running,
    ):  # fmt: skip
        yield running


def get(house: InlineStack, key: str | None, path: str = "/v1/jobs", **more: Any) -> httpx.Response:
    with client_of(house, key) as http:
        return http.get(path, **more)


def post(house: InlineStack, key: str | None, path: str = "/v1/jobs", **more: Any) -> httpx.Response:
    with client_of(house, key) as http:
        return http.post(path, **({"json": TEXT} | more))


def test_nothing_is_answered_without_a_key_of_this_house(house: InlineStack) -> None:
    good = make_key(house, "zoo", "read")
    _, key_id, secret = good["key"].split("_")
    other = make_key(house, "zoo", "read")["key"].rpartition("_")[2]
    for wrong in (
        None, "rvl_", good["key"][:-1], good["key"] + "0", good["key"].upper(), f"rvl_{key_id}_{other}",
        f"rvl_{'0' * 16}_{secret}", secret, key_id, f"rvl_{key_id}_{'0' * 64}", "rvl_' OR 1=1 --_x", "é",
    ):  # fmt: skip
        headers = {b"Authorization": f"Bearer {wrong}".encode()} if wrong is not None else {}
        problem(get(house, None, headers=headers), 401, "unauthorized")
    assert get(house, good["key"]).status_code == 200
    assert get(house, None, "/healthz").status_code == 200


def test_a_scope_opens_what_it_names_and_nothing_else(house: InlineStack) -> None:
    keys = {scope: make_key(house, "zoo", scope)["key"] for scope in ("submit", "read", "admin")}
    refused = post(house, keys["read"])
    assert "submit" in problem(refused, 403, "insufficient_scope").detail
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="submit"'
    problem(get(house, keys["submit"]), 403, "insufficient_scope")
    made = post(house, keys["submit"], headers={"Prefer": "wait=60"})
    assert (made.status_code, "result" in made.json()) == (202, False), "a result is for those who may read"
    for scope in ("submit", "read"):
        for path in ("/v1/keys", "/v1/audit"):
            problem(get(house, keys[scope], path), 403, "insufficient_scope")
    assert post(house, keys["admin"]).status_code == 202
    assert get(house, keys["admin"], "/v1/keys").status_code == 200


def test_an_admin_is_one_of_its_own_tenant(house: InlineStack) -> None:
    admin = make_key(house, "zoo", "admin")["key"]
    theirs = make_key(house, "park", "read")
    body = {"name": "x", "scopes": ["read"]}
    problem(post(house, admin, "/v1/keys", json={**body, "tenant": "park"}), 403, "forbidden")
    assert post(house, admin, "/v1/keys", json=body).json()["tenant"] == "zoo"
    assert {key["tenant"] for key in get(house, admin, "/v1/keys").json()["keys"]} == {"zoo"}
    assert {one["tenant"] for one in get(house, admin, "/v1/audit").json()["entries"]} == {"zoo"}
    problem(post(house, admin, f"/v1/keys/{theirs['id']}/rotate", json={}), 404, "not_found")
    problem(post(house, admin, "/v1/models/words/load"), 403, "forbidden")
    problem(get(house, admin, "/metrics"), 403, "forbidden")
    assert get(house, BOOTSTRAP, "/metrics").status_code == 200


def test_a_secret_is_shown_once_and_kept_nowhere(house: InlineStack) -> None:
    made = make_key(house, "zoo", "read", expires_s=3600, requests_per_s=5.0)
    secret = made["key"].rpartition("_")[2]
    assert (made["live"], made["requests_per_s"]) == (True, 5.0)
    for path in ("/v1/keys", "/v1/audit"):
        assert secret not in get(house, BOOTSTRAP, path).text
    with house.runtime.db.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM api_keys").all()
        audit = connection.exec_driver_sql("SELECT * FROM audit").all()
    assert secret not in str(rows) + str(audit)
    assert secret not in repr(make_key)


def test_a_revoked_key_is_refused_within_seconds_and_so_is_what_it_holds_open(house: InlineStack) -> None:
    made = make_key(house, "zoo", "read")
    by = Caller("zoo", "test", frozenset())
    job, _ = submit_job(  # one that no worker will ever end
        house.runtime.db,
        NewJob(id=str(uuid4()), by=by, kind="embed", priority="normal", queue="embed.normal", max_attempts=1, input={},
               total=1, chunks=[], metadata={}, retention_s=60.0),
    )  # fmt: skip
    seen: list[str] = []

    def follow() -> None:
        with client_of(house, made["key"]) as http, http.stream("GET", f"/v1/jobs/{job.id}/events") as answer:
            seen.extend(line for line in answer.iter_lines() if line)

    thread = Thread(target=follow)
    thread.start()
    wait_until(lambda: seen, what="the first event")
    with client_of(house, BOOTSTRAP) as operator:
        revoked = operator.delete(f"/v1/keys/{made['id']}").json()
        assert (revoked["live"], revoked["revoked_at"] is None) == (False, False)
        assert operator.delete(f"/v1/keys/{made['id']}").json() == revoked, "again is fine"
    wait_until(lambda: get(house, made["key"]).status_code == 401, 10, "the refusal")
    thread.join(30)
    assert not thread.is_alive()


def test_a_key_that_has_expired_is_refused(house: InlineStack) -> None:
    by = Caller("zoo", "test", frozenset())
    _, text = create_key(house.runtime.db, by, tenant="zoo", name="past", scopes=[], expires_s=-1)
    assert "expired" in problem(get(house, text), 401, "unauthorized").detail


def test_rotation_leaves_both_keys_alive_for_a_while(house: InlineStack) -> None:
    old = make_key(house, "zoo", "submit", "read", requests_per_s=7.0)
    new = post(house, BOOTSTRAP, f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 3600}).json()
    assert (new["scopes"], new["requests_per_s"], new["expires_at"]) == (["read", "submit"], 7.0, None)
    assert [get(house, key["key"]).status_code for key in (old, new)] == [200, 200]
    last = post(house, BOOTSTRAP, f"/v1/keys/{new['id']}/rotate", json={"overlap_s": 0}).json()
    wait_until(lambda: get(house, new["key"]).status_code == 401, 10, "the end of the overlap")
    assert get(house, last["key"]).status_code == 200
    problem(post(house, BOOTSTRAP, f"/v1/keys/{new['id']}/rotate", json={}), 409, "conflict")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", json.dumps(TEXT).encode()),
        ("/v1/manifests", b'{"text": "a dog"}\n'),
        ("/v1/images", png(seed=77)),
        ("/v1/jobs", json.dumps({"kind": "embed", "input": {"items": [{"image": {
            "base64": base64.b64encode(png(seed=78)).decode()}}]}}).encode()),
    ],
    ids=["a job", "a manifest", "a picture", "a job with a picture"],
)  # fmt: skip
def test_a_body_whose_key_is_revoked_while_it_comes_is_not_accepted(house: InlineStack, path: str, body: bytes) -> None:
    key = make_key(house, "zoo", "submit", "read")
    seen = Event()

    def pieces() -> Iterator[bytes]:
        yield body[:5]
        assert seen.wait(DEADLINE_S)
        yield body[5:]

    def revoke() -> None:
        # The API has looked at the key once its body is being read, and would take it for two seconds more.
        wait_until(lambda: key["id"] in house.api_state.keys._known, what="the key's look-up")
        with client_of(house, BOOTSTRAP) as http:
            assert http.delete(f"/v1/keys/{key['id']}").status_code == 200
        seen.set()

    thread = Thread(target=revoke)
    thread.start()
    headers = {"Content-Type": "application/json"} if path == "/v1/jobs" else {}
    with client_of(house, key["key"]) as http:
        answer = http.post(path, content=pieces(), headers=headers)
    thread.join()
    assert "while the request was on its way" in problem(answer, 401, "unauthorized").detail


def test_a_limited_admin_makes_no_key_that_may_more_or_outlives_it(house: InlineStack) -> None:
    limits = {"max_queued_items": 10, "max_queued_bytes": 1_000, "requests_per_s": 5.0}
    admin = make_key(house, "park", "admin", expires_s=3600, **limits)
    strong = make_key(house, "park", "submit")
    body = {"name": "x", "scopes": ["submit"]}
    for more in ({}, {"expires_s": 7200}):
        made = post(house, admin["key"], "/v1/keys", json=body | more).json()
        assert {name: made[name] for name in limits} == limits
        assert made["expires_at"] == admin["expires_at"]
    less = post(house, admin["key"], "/v1/keys", json=body | {"max_queued_items": 9, "expires_s": 60}).json()
    assert less["max_queued_items"] == 9
    assert less["expires_at"] < admin["expires_at"]
    for name, most in limits.items():
        refused = post(house, admin["key"], "/v1/keys", json=body | {name: most + 1})
        assert f"{name}={most + 1:g}" in problem(refused, 403, "forbidden").detail
    # Nor does it get the successor of one.
    made = post(house, admin["key"], f"/v1/keys/{strong['id']}/rotate", json={}).json()
    assert {name: made[name] for name in limits} == limits
    assert made["expires_at"] == admin["expires_at"]


def test_a_key_that_may_not_read_learns_nothing_of_a_collection_by_making_it_again(house: InlineStack) -> None:
    keys = {scope: make_key(house, "kiosk", scope)["key"] for scope in ("submit", "admin")}
    made = {"dim": 3, "metadata": {"secret": "plan"}}
    with client_of(house, keys["admin"]) as http:
        assert http.put("/v1/collections/c", json=made).status_code == 201
        assert http.put("/v1/collections/c", json={"dim": 3}).json()["metadata"] == made["metadata"]
    with client_of(house, keys["submit"]) as http:
        again = http.put("/v1/collections/c", json={"dim": 3})
        assert (again.status_code, again.content) == (204, b"")


def test_who_has_seen_the_webhook_secret_is_written(house: InlineStack) -> None:
    admin = make_key(house, "post", "admin")
    assert get(house, admin["key"], "/v1/webhooks/secret").status_code == 200
    (told,) = get(house, admin["key"], "/v1/audit", params={"action": "webhook.reveal"}).json()["entries"]
    assert (told["who"], told["what"]) == (admin["id"], "secret")


def test_reading_with_a_key_writes_nothing(house: InlineStack) -> None:
    key = make_key(house, "zoo", "read")["key"]
    get(house, key)
    written: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "BEGIN", "SET", "SHOW", "PRAGMA")):
            written.append(statement)

    engine = house.api_state.db.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        with client_of(house, key) as http:
            assert {http.get("/v1/jobs").status_code for _ in range(50)} == {200}
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert written == []


def test_the_audit_log_says_who_did_what_and_from_where(house: InlineStack) -> None:
    made = make_key(house, "log", "submit", "read", "admin")
    with client_of(house, made["key"]) as http:
        job = http.post("/v1/jobs", json=TEXT, headers={"Prefer": "wait=60"}).json()
        assert http.delete(f"/v1/jobs/{job['id']}").status_code == 204
        http.put("/v1/collections/c", json={"dim": 3})
        http.delete("/v1/collections/c")
        new = http.post(f"/v1/keys/{made['id']}/rotate", json={}).json()
        http.delete(f"/v1/keys/{new['id']}")
        page = http.get("/v1/audit", params={"limit": 4}).json()
        rest = http.get("/v1/audit", params={"cursor": page["next_cursor"]}).json()
        only = http.get("/v1/audit", params={"action": "job.submit"}).json()["entries"]
    told = [*page["entries"], *rest["entries"]]
    assert [(one["who"], one["action"], one["what"]) for one in reversed(told)] == [
        ("bootstrap", "key.create", f"{made['id']} (admin, read, submit)"),
        (made["id"], "job.submit", f"{job['id']} (embed)"),
        (made["id"], "job.delete", job["id"]),
        (made["id"], "collection.create", "c"),
        (made["id"], "collection.delete", "c"),
        (made["id"], "key.rotate", f"{made['id']} → {new['id']}"),
        (made["id"], "key.revoke", new["id"]),
    ]
    assert {one["address"] for one in told} == {"127.0.0.1"}
    assert [one["action"] for one in only] == ["job.submit"]


def test_every_answer_carries_the_headers_that_a_browser_needs(house: InlineStack) -> None:
    wanted = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
    answers = [get(house, BOOTSTRAP, path) for path in ("/v1/jobs", "/docs", "/nothing", "/openapi.json", "/metrics")]
    answers += [get(house, None), get(house, None, "/healthz"), post(house, BOOTSTRAP, content=b"x" * 30_000_000)]
    for answer in answers:
        assert {name: answer.headers[name] for name in wanted} == wanted, answer.url
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert "style-src 'sha256-" in answers[1].headers["Content-Security-Policy"]


def test_only_pages_of_named_origins_may_call(house: InlineStack) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with client_of(house, None) as http:
        for origin, status in (("https://app.example", 200), ("https://other.example", 400)):
            answer = http.options("/v1/jobs", headers={"Origin": origin, **asked})
            assert answer.status_code == status
            assert ("Access-Control-Allow-Origin" in answer.headers) is (status == 200)
    seen = get(house, BOOTSTRAP, headers={"Origin": "https://app.example"})
    assert seen.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Access-Control-Allow-Credentials" not in seen.headers
