"""Known secrets go through every part at its most talkative; then they are looked for in all that the parts say."""

from __future__ import annotations

import base64
import logging
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import make_url

from revln.access import OWNER, Scope
from revln.db.access.keys import create_key
from revln.db.engine import Database
from revln.embedded_redis import free_port
from revln.settings import Settings
from tests.conftest import fresh_database
from tests.stack import Stack, running_stack, wait_until

FLOWER = "flower-pa55word"
PAYLOAD = "a text that is nobody's business"
URL_QUERY = "signature-in-a-query"


def _provoke(stack: Stack, key: str) -> str:
    """Good calls, bad calls, and a Redis that dies under everybody; the id of a job that ran."""
    bearer = {"Authorization": f"Bearer {key}"}
    http = stack.http
    item = {"image": {"url": f"https://pictures.example/a.jpg?{URL_QUERY}"}}
    body = {"kind": "embed", "input": {"items": [{"text": PAYLOAD}, item]}}
    job = http.post("/v1/jobs", json=body, headers={**bearer, "Prefer": "wait=60"}).json()
    assert job["counts"] == {"total": 2, "succeeded": 1, "failed": 1}, job
    assert http.get(f"/v1/jobs/{job['id']}/events", headers=bearer).status_code == 200
    for headers in ({"Authorization": f"Bearer {key[:-1]}x"}, {"Authorization": f"Basic {key}"}, {"Authorization": ""}):
        assert http.get("/v1/jobs", headers=headers).status_code == 401
    assert http.post("/v1/jobs", json={"kind": PAYLOAD}, headers=bearer).status_code == 422
    assert http.get("/v1/jobs", params={"cursor": key}, headers=bearer).status_code == 422
    stack.kill("redis")
    assert http.get("/readyz", headers=bearer).status_code == 503
    assert http.post("/v1/jobs", json=body, headers=bearer).status_code == 202
    stack.start_redis()
    wait_until(lambda: http.get("/readyz", headers=bearer).status_code == 200, 120, "readiness")
    return str(job["id"])


def _in_redis(stack: Stack, key: str) -> str:
    """What lies in Redis while jobs wait."""
    stack.send("worker", signal.SIGSTOP)
    try:
        body = {"kind": "embed", "input": {"items": [{"text": PAYLOAD}]}}
        for _ in range(3):  # the first may be given to the worker, which was waiting for one when it was stopped
            stack.http.post("/v1/jobs", json=body, headers={"Authorization": f"Bearer {key}"})
        wait_until(lambda: stack.redis.llen("embed.normal"), what="a message")
        found: list[Any] = []
        for name in stack.redis.scan_iter():
            if stack.redis.type(name) == "list":
                found += stack.redis.lrange(name, 0, -1)
            elif stack.redis.type(name) == "hash":
                found += stack.redis.hgetall(name).values()
        # A message's body is JSON in base64.
        bodies = [base64.b64decode(one.split('"body": "')[1].split('"')[0]).decode() for one in found if "body" in one]
        assert bodies
        return repr(found) + repr(bodies)
    finally:
        stack.send("worker", signal.SIGCONT)


def _in_flower(stack: Stack, job_id: str) -> str:
    """Every page of Flower that shows a worker, a task or a setting, as who has its password sees it."""
    port = stack.settings.flower_port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
        stack.start("flower")
        wait_until(lambda: _answers(http), 120, "Flower")
        for page in ("/workers", "/tasks", "/broker", "/api/workers", f"/task/{job_id}.0"):
            assert http.get(page).status_code == 401, f"{page} is open"
        http.auth = httpx.BasicAuth("me", FLOWER)
        workers = wait_until(lambda: http.get("/api/workers", params={"refresh": "1"}).json(), 60, "a worker in Flower")
        (name,) = workers
        assert "broker_url" in str(workers[name]), "the settings are shown, so their secrets must be masked"
        pages = ["/workers", f"/worker/{name}", "/tasks", "/broker", "/api/workers", "/api/tasks", f"/task/{job_id}.0"]
        assert http.post(f"/api/worker/shutdown/{name}").status_code == 403, "Flower changes nothing"
        return "\n".join(http.get(page).text for page in pages)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthcheck").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(600)
def test_no_secret_is_in_any_log_nor_in_redis_nor_in_flower(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # A path too long for a socket's name: Redis listens on a port, behind a password.
    folder = tmp_path / ("long" * 25)
    with fresh_database("postgresql", tmp_path, request) as server:
        url = make_url(server).set(password="postgres-pa55word").render_as_string(hide_password=False)
        settings = {
            "database_url": url, "api_key": "bootstrap-secret", "flower_basic_auth": f"me:{FLOWER}",
            "flower_port": free_port("127.0.0.1"), "log_level": "debug",
        }  # fmt: skip
        with running_stack(folder, **settings) as stack:
            db = Database(url)
            _, key = create_key(db, OWNER, tenant="zoo", name="n", scopes=[Scope.SUBMIT, Scope.READ])
            db.close()
            job_id = _provoke(stack, key)
            said = {"redis": _in_redis(stack, key), "flower": _in_flower(stack, job_id)}
            redis_password = make_url(stack.settings.resolved_redis_url).password
            assert redis_password
            for part in ("api", "worker", "flower", "redis"):
                said[f"{part}.log"] = stack.log(part)
        for name in ("api.log", "worker.log"):
            assert job_id in said[name], "it does say something"
        secrets = ["bootstrap-secret", key.rpartition("_")[2][:-1], FLOWER, "postgres-pa55word", str(redis_password),
                   PAYLOAD, URL_QUERY]  # fmt: skip
        for place, text in said.items():
            for secret in secrets:
                at = text.find(secret)
                assert at < 0, f"{place} tells {secret!r}: …{text[max(0, at - 200) : at + 100]}…"


def test_a_database_error_is_told_without_its_parameters(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    assert db.engine.hide_parameters
    try:
        with db.write() as connection:
            connection.exec_driver_sql("SELECT * FROM nothing_of_that_name WHERE 1 = 1")
    except Exception:
        logging.getLogger(__name__).exception("it failed")
    assert "nothing_of_that_name" in caplog.text


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, api_key="s3cret-key", flower_basic_auth="me:s3cret-flower",
        database_url="postgresql+psycopg://u:s3cret-pg@h/d", redis_url="redis://:s3cret-redis@h/0",
    )  # fmt: skip
    db = Database(settings.database_url.get_secret_value())
    assert "s3cret" not in repr([settings, db, db.engine, db.engine.url, vars(settings)])
    db.close()
