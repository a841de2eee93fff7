"""The HTTP contract, call by call, over real parts on both databases (docs/http-api.md says the same in prose)."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from api.answers import (
    CollectionAnswer,
    CollectionPage,
    CollectionsAnswer,
    ImageAnswer,
    JobAnswer,
    JobDoneAnswer,
    JobPage,
    ManifestAnswer,
    ModelsAnswer,
    Problem,
    ReadyAnswer,
)
from revln.embedded_redis import free_port
from revln.jobs.kinds import KINDS
from revln.settings import ModelSettings
from tests import pictures
from tests.stack import Stack, wait_until

TEXT = {"items": [{"text": "a dog"}]}
# What DESIGN.md promises of a job.
PROMISED = {
    "id", "kind", "status", "done", "priority", "model", "model_fingerprint", "counts", "progress", "queue_position",
    "eta_s", "created_at", "started_at", "finished_at", "cancel_requested_at", "expires_at", "error", "metadata",
    "urls",
}  # fmt: skip


def post(
    stack: Stack, input_: dict[str, Any], kind: str = "embed", headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    return stack.http.post("/v1/jobs", json={"kind": kind, "input": input_, **more}, headers=headers)


def done(stack: Stack, input_: dict[str, Any], kind: str = "embed", **more: Any) -> dict[str, Any]:
    """Submit a job and wait for its end; with its result."""
    answer = post(stack, input_, kind, {"Prefer": "wait=60"}, **more)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def until_done(http: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = wait_until(
        lambda: (now := http.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json())["done"] and now, what="the end"
    )
    return job


def problem(answer: httpx.Response, status: int, code: str) -> Problem:
    """The problem that an answer must be."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    body = Problem.model_validate_json(answer.content)
    assert (body.status, body.code) == (status, code)
    return body


@contextmanager
def frozen(stack: Stack, part: str = "worker") -> Iterator[None]:
    """A part that does nothing until the block ends: what is queued stays queued."""
    wait_until(lambda: _freeze(stack, part), what="a moment without a lock")
    try:
        yield
    finally:
        stack.send(part, signal.SIGCONT)


def _freeze(stack: Stack, part: str) -> bool:
    """False if the part was stopped in the middle of a write, with everybody waiting for its lock."""
    stack.send(part, signal.SIGSTOP)
    try:
        stack.http.put("/v1/collections/is-anything-locked", timeout=5)
    except httpx.ReadTimeout:
        stack.send(part, signal.SIGCONT)
        return False
    return True


@contextmanager
def another_api(stack: Stack, **settings: Any) -> Iterator[httpx.Client]:
    """A second API process on the same database and Redis, with settings of its own."""
    changed = stack.settings.model_copy(update={"api_port": free_port("127.0.0.1"), **settings})
    base = f"http://127.0.0.1:{changed.api_port}"
    with (stack.folder / "another-api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "revln.cli.main", "api"],
            env={"PATH": "", **changed.to_env()},
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=base, timeout=60, trust_env=False) as http:
            wait_until(lambda: _answers(http), what="another API")
            yield http
    finally:
        process.kill()
        process.wait()


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def long_job(stack: Stack, **more: Any) -> dict[str, Any]:
    """157 chunks, of which none has run."""
    answer = post(stack, {"items": [{"text": f"sentence {uuid4().hex} of {n}"} for n in range(10_000)]}, **more)
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    return job


def started(stack: Stack, job: dict[str, Any]) -> dict[str, Any]:
    """The job once some of its items are done."""
    now: dict[str, Any] = wait_until(
        lambda: (now := stack.http.get(job["urls"]["self"]).json())["counts"]["succeeded"] and now, what="a first chunk"
    )
    assert not now["done"]
    return now


# --- submitting --------------------------------------------------------------------------------------------------


def test_a_submission_answers_202_with_its_place_and_the_whole_job(stack: Stack) -> None:
    with frozen(stack):
        answer = post(stack, TEXT, metadata={"note": None, "tag": "first"}, priority="bulk", deadline_s=600)
    assert answer.status_code == 202
    job = JobAnswer.model_validate_json(answer.content)
    assert set(answer.json()) >= PROMISED
    assert answer.headers["Location"] == job.urls.self == f"/v1/jobs/{job.id}"
    assert answer.headers["ETag"] == 'W/"0"'
    assert (job.status, job.done, job.progress, job.started_at) == ("queued", False, 0.0, None)
    assert job.counts.model_dump() == {"total": 1, "succeeded": 0, "failed": 0}
    assert job.queue_position is not None
    assert job.deadline_at is not None
    assert job.metadata == {"note": None, "tag": "first"}
    assert job.created_at.endswith("Z")
    until_done(stack.http, job.id)


def test_prefer_wait_answers_200_with_the_result_of_each_kind_in_its_promised_form(stack: Stack) -> None:
    name = f"c-{uuid4().hex[:8]}"
    assert stack.http.put(f"/v1/collections/{name}").status_code == 201
    sha256 = stack.http.post("/v1/images", content=pictures.jpeg(seed=11)).json()["sha256"]
    item = {"id": "a", "image": {"sha256": sha256}, "text": "a picture", "metadata": {"n": 1}}
    missing = {"id": "b", "image": {"sha256": "0" * 64}}
    inputs: dict[str, dict[str, Any]] = {
        "embed": {"items": [item, missing]},
        "index": {"collection": name, "items": [item, missing]},
        "search": {"collection": name, "queries": [{"text": "a picture"}, {"id": "gone"}]},
        "caption": {"items": [item, missing], "collection": name},
    }
    assert set(inputs) == set(KINDS)
    for kind, input_ in inputs.items():
        answer = post(stack, input_, kind, {"Prefer": 'respond-async, wait="60"'})
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=60")
        job = JobDoneAnswer.model_validate_json(answer.content)
        assert (job.status, job.kind, job.counts.succeeded, job.counts.failed) == ("succeeded", kind, 1, 1)
        result = KINDS[kind].result.model_validate(answer.json()["result"], extra="forbid")
        page = stack.http.get(job.urls.result)
        assert KINDS[kind].result.model_validate(page.json(), extra="forbid") == result


def test_prefer_wait_answers_202_when_the_job_is_not_done_in_time(stack: Stack) -> None:
    with frozen(stack):
        answer = post(stack, TEXT, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "wait=1")
    assert "result" not in answer.json()
    until_done(stack.http, answer.json()["id"])


def test_a_preference_is_held_to_the_longest_wait_and_one_not_understood_is_ignored(stack: Stack) -> None:
    assert post(stack, TEXT, headers={"Prefer": "wait=100000"}).headers["Preference-Applied"] == "wait=60"
    odd = post(stack, TEXT, headers={"Prefer": "wait=soon, return=minimal"})
    assert odd.status_code == 202
    assert "Preference-Applied" not in odd.headers


def test_one_idempotency_key_gives_one_job_from_many_threads_and_after_a_restart(stack: Stack) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    body = {"items": [{"text": "only once"}]}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(stack, body, headers=key), range(48)))
    assert {answer.status_code for answer in answers} == {202}
    first = answers[0].json()["id"]
    assert {answer.json()["id"] for answer in answers} == {first}
    stack.kill("api")
    stack.start_api()
    assert post(stack, body, headers={**key, "Prefer": "wait=30"}).json()["id"] == first
    refused = problem(post(stack, TEXT, headers=key), 422, "idempotency_mismatch")
    assert first in refused.detail


def test_a_job_is_accepted_while_redis_is_frozen_and_done_when_it_is_back(stack: Stack) -> None:
    with frozen(stack, "redis"):
        answer = post(stack, TEXT)
    assert answer.status_code == 202
    assert until_done(stack.http, answer.json()["id"])["status"] == "succeeded"


def test_too_much_waiting_work_is_429_with_a_time_to_come_again(stack: Stack) -> None:
    two = {"kind": "embed", "input": {"items": [{"text": "a"}, {"text": "b"}]}}
    with another_api(stack, max_queued_items=2) as http, frozen(stack):
        job = post(stack, TEXT).json()
        answer = http.post("/v1/jobs", json=two)
    assert "at most 2 may wait" in problem(answer, 429, "too_busy").detail
    assert int(answer.headers["Retry-After"]) >= 1
    until_done(stack.http, job["id"])


# --- reading and waiting -----------------------------------------------------------------------------------------


def test_a_long_poll_returns_as_soon_as_the_job_changes(stack: Stack) -> None:
    with ThreadPoolExecutor(1) as pool:
        with frozen(stack):
            job = post(stack, TEXT).json()
            waiting = pool.submit(stack.http.get, job["urls"]["self"], params={"wait": 55})
            unchanged = stack.http.get(job["urls"]["self"], params={"wait": 1}).json()
            assert unchanged["status"] == "queued"
            assert not waiting.done()
        assert waiting.result(timeout=30).json()["status"] in ("running", "succeeded")
    until_done(stack.http, job["id"])
    assert stack.http.get(job["urls"]["self"], params={"wait": 55}, timeout=10).json()["done"]


def test_a_long_poll_hears_of_a_change_that_redis_could_not_call_out(stack: Stack) -> None:
    with frozen(stack), ThreadPoolExecutor(1) as pool:
        job = post(stack, TEXT).json()
        waiting = pool.submit(stack.http.get, job["urls"]["self"], params={"wait": 50})
        with frozen(stack, "redis"):
            assert stack.http.post(job["urls"]["cancel"]).json()["status"] == "canceled"
            assert waiting.result(timeout=30).json()["status"] == "canceled"


def test_forty_waiting_clients_hold_none_of_two_threads(stack: Stack) -> None:
    with another_api(stack, api_threads=2) as http, frozen(stack):
        job = http.post("/v1/jobs", json={"kind": "embed", "input": TEXT}).json()

        async def crowd() -> list[str]:
            async with httpx.AsyncClient(base_url=http.base_url, timeout=60, trust_env=False) as many:
                waiting = [asyncio.create_task(many.get(job["urls"]["self"], params={"wait": 50})) for _ in range(20)]
                waiting += [asyncio.create_task(many.get(job["urls"]["events"])) for _ in range(20)]
                for _ in range(10):
                    other = await many.get("/v1/jobs", params={"limit": 1}, timeout=10)
                    assert other.status_code == 200
                assert not any(task.done() for task in waiting)
                await many.post(job["urls"]["cancel"], timeout=10)
                return [(await task).text for task in waiting]

        answers = asyncio.run(crowd())
    assert all(json.loads(text)["status"] == "canceled" for text in answers[:20])
    assert all("event: job.canceled" in text for text in answers[20:])


def test_an_etag_that_still_holds_is_304_and_one_that_does_not_is_200(stack: Stack) -> None:
    job = done(stack, TEXT)
    first = stack.http.get(job["urls"]["self"])
    tag = first.headers["ETag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = stack.http.get(job["urls"]["self"], headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert stack.http.get(job["urls"]["self"], headers={"If-None-Match": 'W/"999"'}).status_code == 200
    with frozen(stack):
        waiting = post(stack, TEXT)
        held = stack.http.get(
            waiting.headers["Location"], params={"wait": 1}, headers={"If-None-Match": waiting.headers["ETag"]}
        )
        assert held.status_code == 304
        stale = stack.http.get(
            waiting.headers["Location"], params={"wait": 55}, headers={"If-None-Match": 'W/"999"'}, timeout=10
        )
        assert stale.json()["status"] == "queued"


def test_jobs_are_listed_newest_first_by_each_filter_and_page_by_page(stack: Stack) -> None:
    tag, name = uuid4().hex, f"c-{uuid4().hex[:8]}"
    stack.http.put(f"/v1/collections/{name}")
    ids = [done(stack, TEXT, metadata={"tag": tag})["id"] for _ in range(5)]
    failed = done(stack, {"items": [{"image": {"sha256": "3" * 64}}]}, metadata={"tag": tag})["id"]
    indexed = done(stack, {"collection": name, **TEXT}, "index", metadata={"tag": tag})

    def listed(**params: Any) -> list[str]:
        page = JobPage.model_validate_json(stack.http.get("/v1/jobs", params=params).content)
        return [job.id for job in page.jobs]

    assert listed(tag=tag) == [indexed["id"], failed, *reversed(ids)]
    assert listed(tag=tag, status="failed") == [failed]
    assert listed(tag=tag, kind="index") == listed(collection=name) == [indexed["id"]]
    assert listed(tag=tag, kind="caption") == []
    assert listed(tag=tag, created_after=indexed["created_at"]) in ([indexed["id"]], [])  # stored finer than shown
    assert listed(tag=tag, created_after="2020-01-01T00:00:00") == listed(tag=tag)
    assert listed(tag=tag, created_after="2100-01-01T00:00:00+02:00") == []
    assert listed(tag=f"{tag}\x00") == []

    seen: list[str] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = stack.http.get("/v1/jobs", params={"tag": tag, "limit": 3, **cursor}).json()
        seen += [job["id"] for job in page["jobs"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert (seen, pages) == (listed(tag=tag), 3)
    for bad in ("x", "WzEuMCwgIlx1MDAwMCJd", "WzEuMCwgIlx1ZDgwMCJd", "W05hTiwgImEiXQ", "é", "W10", "WzEsICJhIl0"):
        assert problem(stack.http.get("/v1/jobs", params={"cursor": bad}), 422, "validation_failed").errors


def test_a_result_is_read_by_pages_while_the_job_runs(stack: Stack) -> None:
    job = long_job(stack)
    started(stack, job)
    # Whatever the worker was doing when it was stopped: reading waits for no lock.
    stack.send("worker", signal.SIGSTOP)
    try:
        # A commit that the worker had sent may still land in the database server: read the page between two equal
        # answers.
        after = stack.http.get(job["urls"]["self"]).json()
        now: dict[str, Any] = {}
        while now.get("counts") != after["counts"]:
            now = after
            page = stack.http.get(job["urls"]["result"], params={"limit": 10_000}).json()
            after = stack.http.get(job["urls"]["self"]).json()
        JobAnswer.model_validate(now)
        assert (now["status"], now["finished_at"]) == ("running", None)
        assert 0 < now["progress"] < 1
        assert now["eta_s"] > 0
        found = [item["index"] for item in page["items"]]
        assert found == sorted(found)
        assert (len(found), page["total"]) == (now["counts"]["succeeded"], 10_000)
        some = found[7]
        window = stack.http.get(job["urls"]["result"], params={"offset": some, "limit": 5}).json()
        assert [item["index"] for item in window["items"]] == [n for n in found if some <= n < some + 5]
        beyond = stack.http.get(job["urls"]["result"], params={"offset": 10_000})
        assert (beyond.status_code, beyond.json()["items"]) == (200, [])
    finally:
        stack.send("worker", signal.SIGCONT)
    stack.http.post(job["urls"]["cancel"])
    until_done(stack.http, job["id"])


def test_vectors_of_a_kind_that_has_none_are_refused(stack: Stack) -> None:
    name = f"c-{uuid4().hex[:8]}"
    stack.http.put(f"/v1/collections/{name}")
    job = done(stack, {"collection": name, **TEXT}, "index")
    answer = stack.http.get(job["urls"]["result"], headers={"Accept": "application/x-npy"})
    assert "application/json" in problem(answer, 415, "unsupported_media_type").detail


def test_events_are_resumed_after_the_last_one_seen_and_end_with_the_job(stack: Stack) -> None:
    job = done(stack, TEXT)
    answer = stack.http.get(job["urls"]["events"])
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = _events(answer.text)
    assert [event["event"] for event in events] == ["job.queued", "job.started", "job.succeeded"]
    assert json.loads(events[-1]["data"])["succeeded"] == 1
    resumed = stack.http.get(job["urls"]["events"], headers={"Last-Event-ID": events[0]["id"]})
    assert _events(resumed.text) == events[1:]
    over = stack.http.get(job["urls"]["events"], headers={"Last-Event-ID": events[-1]["id"]})
    assert _events(over.text) == []


def test_events_arrive_while_the_job_waits_and_go_on_after_the_api_was_killed(stack: Stack) -> None:
    with frozen(stack):
        job = post(stack, TEXT).json()
        with stack.http.stream("GET", job["urls"]["events"]) as stream:
            lines = stream.iter_lines()
            first = _events("\n".join([next(lines) for _ in range(3)]))
            assert first[0]["event"] == "job.queued"
            stack.kill("api")
            with pytest.raises(httpx.TransportError):
                list(lines)
        stack.start_api()
    rest = stack.http.get(job["urls"]["events"], headers={"Last-Event-ID": first[0]["id"]})
    assert [event["event"] for event in _events(rest.text)] == ["job.started", "job.succeeded"]


def _events(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return [dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")) for block in blocks]


# --- cancel, retry, delete ---------------------------------------------------------------------------------------


def test_a_queued_job_is_canceled_at_once_retried_and_then_done(stack: Stack) -> None:
    with frozen(stack):
        job = post(stack, TEXT).json()
        answer = stack.http.post(job["urls"]["cancel"])
        canceled = JobAnswer.model_validate_json(answer.content)
        assert (answer.status_code, canceled.status, canceled.done) == (200, "canceled", True)
        assert canceled.cancel_requested_at is not None
        assert stack.http.post(job["urls"]["cancel"]).json()["status"] == "canceled", "asking twice is fine"
        again = stack.http.post(f"{job['urls']['self']}/retry")
        assert (again.status_code, again.json()["status"], again.json()["cancel_requested_at"]) == (202, "queued", None)
    ended = until_done(stack.http, job["id"])
    assert ended["status"] == "succeeded"
    assert "succeeded" in problem(stack.http.post(job["urls"]["cancel"]), 409, "conflict").detail
    problem(stack.http.post(f"{job['urls']['self']}/retry"), 409, "conflict")


def test_a_running_job_is_canceled_keeps_what_was_done_and_a_retry_does_the_rest(stack: Stack) -> None:
    job = long_job(stack)
    started(stack, job)
    problem(stack.http.delete(job["urls"]["self"]), 409, "conflict")
    assert stack.http.post(job["urls"]["cancel"]).json()["cancel_requested_at"] is not None
    canceled = until_done(stack.http, job["id"])
    assert canceled["status"] == "canceled"
    kept = canceled["counts"]["succeeded"]
    assert 0 < kept < 10_000
    page = stack.http.get(job["urls"]["result"], params={"limit": 10_000}).json()
    assert len(page["items"]) == kept
    retried = stack.http.post(f"{job['urls']['self']}/retry").json()
    assert retried["counts"]["succeeded"] >= kept, "what was done stays done"
    ended = until_done(stack.http, job["id"])
    assert ended["counts"] == {"total": 10_000, "succeeded": 10_000, "failed": 0}
    again = stack.http.get(job["urls"]["result"], params={"limit": 10_000}).json()
    assert [item["index"] for item in again["items"]] == list(range(10_000))


def test_a_retry_runs_only_what_failed(stack: Stack) -> None:
    data = pictures.jpeg(seed=int(uuid4().hex[:6], 16))
    sha256 = ImageAnswer.model_validate_json(_unsaved(data)).sha256
    items = [{"id": "good", "text": "a dog"}, {"id": "late", "image": {"sha256": sha256}}]
    job = done(stack, {"items": items})
    assert job["counts"] == {"total": 2, "succeeded": 1, "failed": 1}
    assert stack.http.post("/v1/images", content=data).json()["sha256"] == sha256
    assert stack.http.post(f"{job['urls']['self']}/retry").status_code == 202
    ended = until_done(stack.http, job["id"])
    assert ended["counts"] == {"total": 2, "succeeded": 2, "failed": 0}
    result = stack.http.get(job["urls"]["result"]).json()
    assert result["items"][0] == job["result"]["items"][0]
    assert [item["id"] for item in result["items"]] == ["good", "late"]


def _unsaved(data: bytes) -> bytes:
    """What an upload of these bytes would answer."""
    from revln.images import ImageLimits, inspect_image

    facts = inspect_image(data, ImageLimits())
    return json.dumps({name: getattr(facts, name) for name in ImageAnswer.model_fields}).encode()


def test_a_deleted_job_is_gone_with_its_result_and_an_open_one_is_not_deleted(stack: Stack) -> None:
    with frozen(stack):
        job = post(stack, TEXT).json()
        assert "cancel" in problem(stack.http.delete(job["urls"]["self"]), 409, "conflict").detail
    until_done(stack.http, job["id"])
    gone = stack.http.delete(job["urls"]["self"])
    assert (gone.status_code, gone.content) == (204, b"")
    for url in (job["urls"]["self"], job["urls"]["result"], job["urls"]["events"]):
        problem(stack.http.get(url), 404, "not_found")
    problem(stack.http.delete(job["urls"]["self"]), 404, "not_found")


# --- images, manifests, collections, models ----------------------------------------------------------------------


def test_an_image_is_uploaded_raw_or_as_a_form_and_known_the_second_time(stack: Stack) -> None:
    raw, form = (pictures.png(seed=int(uuid4().hex[:6], 16)) for _ in range(2))
    first = stack.http.post("/v1/images", content=raw)
    facts = ImageAnswer.model_validate_json(first.content)
    assert (first.status_code, facts.media_type, facts.width, facts.height) == (201, "image/png", 64, 48)
    assert (facts.size_bytes, first.headers["Location"]) == (len(raw), f"/v1/images/{facts.sha256}")
    again = stack.http.post("/v1/images", files={"file": ("a.png", raw, "image/png")})
    assert (again.status_code, again.json()) == (200, first.json())
    assert stack.http.post("/v1/images", files={"any": ("b.png", form)}, data={"n": "1"}).status_code == 201


def test_an_image_is_fetched_whole_and_as_a_thumbnail_and_cached_for_ever(stack: Stack) -> None:
    data = pictures.rotated_jpeg(6, 640, 480)
    sha256 = stack.http.post("/v1/images", content=data).json()["sha256"]
    whole = stack.http.get(f"/v1/images/{sha256}")
    assert (whole.content, whole.headers["Content-Type"]) == (data, "image/jpeg")
    assert whole.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    small = stack.http.get(f"/v1/images/{sha256}", params={"width": 160})
    with Image.open(io.BytesIO(small.content)) as opened:
        assert (opened.format, opened.size) == ("JPEG", (160, 120))
    assert small.headers["ETag"] != whole.headers["ETag"]
    again = stack.http.get(f"/v1/images/{sha256}", headers={"If-None-Match": whole.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_manifest_is_kept_under_its_hash_and_its_lines_are_counted(stack: Stack) -> None:
    lines = b'{"text": "a"}\n\n{"text": "b"}'
    answer = stack.http.post("/v1/manifests", content=lines)
    kept = ManifestAnswer.model_validate_json(answer.content)
    assert (answer.status_code, kept.lines, kept.size_bytes) == (201, 2, len(lines))
    assert done(stack, {"manifest": {"sha256": kept.sha256}})["counts"]["total"] == 2


def test_a_manifest_of_many_blank_lines_between_items_loses_none(stack: Stack) -> None:
    lines = [b" \n" * (n % 7) + b'{"id": "i%d", "text": "text %d"}' % (n, n % 5) for n in range(200)]
    sha256 = stack.http.post("/v1/manifests", content=b"\n".join(lines) + b"\n\n\n").json()["sha256"]
    job = done(stack, {"manifest": {"sha256": sha256}})
    assert job["counts"] == {"total": 200, "succeeded": 200, "failed": 0}
    assert [item["id"] for item in job["result"]["items"]] == [f"i{n}" for n in range(200)]


def test_a_collection_is_made_once_listed_paged_and_deleted(stack: Stack) -> None:
    name = f"c-{uuid4().hex[:8]}"
    made = stack.http.put(f"/v1/collections/{name}", json={"metadata": {"about": "tests"}})
    collection = CollectionAnswer.model_validate_json(made.content)
    assert (made.status_code, collection.count, collection.head_seq, collection.dim) == (201, 0, 0, 32)
    again = stack.http.put(f"/v1/collections/{name}")
    assert (again.status_code, again.json()) == (200, made.json())
    items = [{"id": f"i{n}", "text": f"item {n}", "metadata": {"n": n}} for n in range(7)]
    done(stack, {"collection": name, "items": items}, "index")
    assert stack.http.get(f"/v1/collections/{name}").json()["count"] == 7
    everything = CollectionsAnswer.model_validate_json(stack.http.get("/v1/collections").content)
    assert name in [one.name for one in everything.collections]

    seen: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = CollectionPage.model_validate_json(
            stack.http.get(f"/v1/collections/{name}/items", params={"limit": 3, **cursor}).content
        )
        seen += [(item.id, item.text, item.metadata) for item in page.items]
        if page.next_cursor is None:
            break
        cursor = {"cursor": page.next_cursor}
    assert seen == [(item["id"], item["text"], item["metadata"]) for item in items]
    for bad in ("x", "WyJcdTAwMDAiXQ", "WyJcdWQ4MDAiXQ"):
        problem(stack.http.get(f"/v1/collections/{name}/items", params={"cursor": bad}), 422, "validation_failed")

    assert stack.http.delete(f"/v1/collections/{name}").status_code == 204
    problem(stack.http.get(f"/v1/collections/{name}"), 404, "not_found")
    problem(stack.http.delete(f"/v1/collections/{name}"), 404, "not_found")


def test_a_collection_and_its_jobs_stay_with_one_model(stack: Stack) -> None:
    name = f"c-{uuid4().hex[:8]}"
    stack.http.put(f"/v1/collections/{name}")
    other = ModelSettings(source=str(files("revln") / "weights" / "revln-tiny"))
    with another_api(stack, models={**stack.settings.models, "other": other}) as http:
        refused = problem(http.put(f"/v1/collections/{name}", json={"model": "other"}), 409, "conflict")
        assert "revln-tiny" in refused.detail
        body = {"kind": "index", "model": "other", "input": {"collection": name, **TEXT}}
        assert name in problem(http.post("/v1/jobs", json=body), 409, "fingerprint_mismatch").detail


def test_the_models_are_listed_with_where_they_are_loaded(stack: Stack) -> None:
    done(stack, TEXT)
    wait_until(lambda: stack.http.get("/v1/models").json()["models"][0]["loaded"], what="a heartbeat with the model")
    (model,) = ModelsAnswer.model_validate_json(stack.http.get("/v1/models").content).models
    assert (model.name, model.default, model.dim) == ("revln-tiny", True, 32)
    assert model.workers
    assert model.workers[0].device == "cpu"


# --- health, documentation, the key ------------------------------------------------------------------------------


def test_readyz_names_the_part_that_does_not_answer(stack: Stack) -> None:
    assert stack.http.get("/healthz").json()["status"] == "ok"
    wait_until(lambda: stack.http.get("/readyz").status_code == 200, what="readiness")
    with frozen(stack):
        answer = stack.http.get("/readyz")
        parts = ReadyAnswer.model_validate_json(answer.content)
        assert (answer.status_code, parts.ready, parts.database, parts.redis) == (503, False, "ok", "ok")
        assert "no worker answered" in parts.worker
    with frozen(stack, "redis"):
        answer = stack.http.get("/readyz")
        parts = ReadyAnswer.model_validate_json(answer.content)
        assert (answer.status_code, parts.database) == (503, "ok")
        assert "Redis does not answer" in parts.redis
        assert stack.http.get("/healthz").status_code == 200
    wait_until(lambda: stack.http.get("/readyz").status_code == 200, what="readiness")


def test_metrics_count_jobs_and_workers(stack: Stack) -> None:
    done(stack, TEXT)
    answer = stack.http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'revln_jobs{kind="embed",status="succeeded"}' in answer.text
    assert "revln_workers 1.0" in answer.text


def test_the_documentation_is_one_page_that_needs_no_other_host(stack: Stack) -> None:
    page = stack.http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
    api = stack.http.get("/openapi.json").json()
    for path in api["paths"]:
        assert f"<code>{path}</code>" in page.text
    for name in api["components"]["schemas"]:
        assert f"id='{name}'" in page.text


def test_with_a_key_everything_but_healthz_is_401_without_it(stack: Stack) -> None:
    from pydantic import SecretStr

    with another_api(stack, api_key=SecretStr("schluessel")) as http:
        paths = [
            *http.get("/openapi.json", headers=_bearer("schluessel")).json()["paths"],
            "/docs",
            "/openapi.json",
            "/x",
        ]
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE"):
                if path == "/healthz" and method == "GET":
                    continue
                if path == "/healthz":
                    problem(http.request(method, path), 405, "method_not_allowed")
                    continue
                answer = http.request(method, path, headers=_bearer("wrong"))
                assert "Bearer" in problem(answer, 401, "unauthorized").detail
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert http.get("/healthz").status_code == 200
        problem(http.get("/v1/jobs", headers={"Authorization": "Basic schl"}), 401, "unauthorized")
        assert http.get("/v1/jobs", headers=_bearer("schluessel")).status_code == 200
        # A stranger's body is not read: 401 comes before 413.
        problem(http.post("/v1/jobs", content=b"x" * 30_000_000), 401, "unauthorized")


def _bearer(key: str) -> dict[bytes, bytes]:
    return {b"Authorization": f"Bearer {key}".encode()}


def test_links_carry_the_public_address_and_flowers(stack: Stack) -> None:
    with another_api(stack, public_url="https://revln.example/", flower_url="https://flower.example/") as http:
        answer = http.post("/v1/jobs", json={"kind": "embed", "input": TEXT})
        job = answer.json()
    assert answer.headers["Location"] == job["urls"]["self"] == f"https://revln.example/v1/jobs/{job['id']}"
    assert job["urls"]["flower"] == f"https://flower.example/task/{job['id']}.0"


def test_threads_that_submit_at_once_all_get_jobs_of_their_own(stack: Stack) -> None:
    start = threading.Barrier(16)

    def submit(n: int) -> str:
        start.wait()
        return str(post(stack, {"items": [{"text": f"thread {n}"}]}).json()["id"])

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(submit, range(16)))
    assert len(set(ids)) == 16
    assert {until_done(stack.http, job_id)["status"] for job_id in ids} == {"succeeded"}
