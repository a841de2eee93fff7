"""Experiment 16: a tenant tries each of another's ids on each route, and in each place of a job where an id may stand.

The routes come from the application itself: one that is new fails here until it says which of these it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from revln.access import Caller
from revln.db.jobs.submit import Inline, NewChunk, NewJob, Range, submit_job
from revln.jobs.kinds import KINDS, queue_name
from revln.settings import Settings
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.pictures import png
from tests.stack import wait_until
from tests.tenants import BOOTSTRAP, Owned, client_of, make_key, own_everything, run_job
from tests.word_model import WordCatalog

# A path's variable, and which of a tenant's things it names.
NAMES = {"job_id": "job_id", "sha256": "image", "key_id": "key_id", "name": "collection", "webhook_id": "webhook",
         "snapshot_id": "job_id"}  # fmt: skip
# What belongs to the house and not to a tenant.
SHARED = {"/v1/models/{name}", "/v1/models/{name}/load", "/v1/models/{name}/unload"}
# What makes or changes the caller's own without naming it by an id. What a job may name is tried further down.
OWN = {("POST", "/v1/jobs"), ("POST", "/v1/images"), ("POST", "/v1/manifests"), ("POST", "/v1/keys"),
       ("PUT", "/v1/collections/{name}"), ("POST", "/v1/webhooks/replay"), ("POST", "/v1/webhooks/test"),
       ("POST", "/v1/webhooks/enable"), ("POST", "/v1/webhooks/secret/rotate")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Two:
    """A has things; B, with every scope of its own tenant, tries to get at them."""

    house: InlineStack
    a: httpx.Client
    b: httpx.Client
    owned: Owned


@pytest.fixture(scope="module", params=DATABASES)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("tenants")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, WordCatalog(words=16, other=24), default_model="words", api_key=BOOTSTRAP) as house,
    ):
        keys = {name: make_key(house, name, "submit", "read", "admin") for name in ("ana", "bob")}
        with client_of(house, keys["ana"]["key"]) as a, client_of(house, keys["bob"]["key"]) as b:
            yield Two(house, a, b, own_everything(a, keys["ana"]["id"], "ana"))


def _walk(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, in whatever router; HEAD is GET without what it answers."""
    for route in routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from _walk(inner.routes)
        else:
            yield from ((method, route.path) for method in sorted(route.methods - {"HEAD"}))


ROUTES = list(_walk(create_app(Settings()).routes))


def test_every_operation_that_is_documented_is_among_the_routes() -> None:
    documented = create_app(Settings()).openapi()["paths"].items()
    assert {(verb.upper(), path) for path, verbs in documented for verb in verbs} <= set(ROUTES)


def _filled(path: str, owned: Owned) -> str:
    for variable, field in NAMES.items():
        path = path.replace("{" + variable + "}", getattr(owned, field))
    return path.replace("{role}", "former")


@pytest.mark.parametrize(("method", "route"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_another_tenants_id_is_404_on_every_route(two: Two, method: str, route: str) -> None:
    if route in SHARED or (method, route) in OWN:
        return
    path = _filled(route, two.owned)
    assert "{" not in path, f"{method} {route} has a variable that this test does not know: is it a tenant's?"
    if path == route:
        assert method == "GET", f"{method} {path} changes something: whose? Say it in OWN, or name it by an id"
        answer = two.b.get(path)
        assert not [one for one in two.owned.all if one in answer.text]
        return
    answer = two.b.request(method, path, json={} if method in ("POST", "PUT") else None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text
    if method == "GET":
        assert two.a.get(path).status_code == 200, "nobody else can be kept from what is not there"


def test_nothing_of_the_above_has_changed_anything(two: Two) -> None:
    owned = two.owned
    assert two.a.get(f"/v1/jobs/{owned.job_id}").json()["status"] == "succeeded"
    assert two.a.get(f"/v1/collections/{owned.collection}").json()["count"] == 1
    assert any(key["id"] == owned.key_id and key["live"] for key in two.a.get("/v1/keys").json()["keys"])


def test_a_name_that_is_another_tenants_is_free(two: Two) -> None:
    path = f"/v1/collections/{two.owned.collection}"
    assert two.b.put(path, json={"dim": 3}).status_code == 201
    assert two.b.get(path).json()["count"] == 0
    assert two.a.get(path).json()["dim"] == 16
    assert two.b.delete(path).status_code == 204
    assert two.a.get(path).json()["count"] == 1


def test_an_idempotency_key_is_the_tenants_own(two: Two) -> None:
    body = {"kind": "embed", "input": {"items": [{"text": "of bob's own"}]}}
    answer = two.b.post("/v1/jobs", json=body, headers={"Idempotency-Key": two.owned.idempotency_key})
    assert answer.status_code == 202
    assert answer.json()["id"] != two.owned.job_id
    again = two.b.post("/v1/jobs", json=body, headers={"Idempotency-Key": two.owned.idempotency_key})
    assert again.json()["id"] == answer.json()["id"]


def test_an_upload_of_what_another_has_is_new_and_says_nothing_of_the_other(two: Two) -> None:
    data = png(seed=77)
    assert [two.a.post("/v1/images", content=data).status_code for _ in range(2)] == [201, 200]
    sha256 = two.a.post("/v1/images", content=data).json()["sha256"]
    assert two.b.get(f"/v1/images/{sha256}").status_code == 404
    assert two.b.post("/v1/images", content=data).status_code == 201
    assert two.b.get(f"/v1/images/{sha256}").content == data


def test_webhooks_are_replayed_and_signed_for_the_caller_alone(two: Two) -> None:
    before = two.a.get("/v1/webhooks").json(), two.a.get("/v1/webhooks/secret").json()
    assert two.b.post("/v1/webhooks/replay", json={"since": "2000-01-01T00:00:00Z"}).json() == {"replayed": 0}
    assert two.b.post("/v1/webhooks/secret/rotate", json={}).status_code == 200
    assert (two.a.get("/v1/webhooks").json(), two.a.get("/v1/webhooks/secret").json()) == before


# --- ids inside a job ----------------------------------------------------------------------------------------------


COLLECTION_JOBS: list[tuple[str, dict[str, Any]]] = [
    ("search", {"queries": [{"text": "ana"}]}),
    ("caption", {"items": [{"image": {"sha256": "ab" * 32}}]}),
    ("index", {"items": [{"id": "x", "text": "y"}]}),
    *(("index", {"operation": operation}) for operation in ("build", "duplicates", "migrate")),
    ("index", {"operation": "delete", "ids": ["x"]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "input_"), COLLECTION_JOBS)
def test_a_job_that_names_anothers_collection_hears_that_there_is_none(
    two: Two, kind: str, input_: dict[str, Any]
) -> None:
    def told(name: str) -> tuple[int, str]:
        answer = two.b.post("/v1/jobs", json={"kind": kind, "input": {**input_, "collection": name}, "model": "words"})
        return answer.status_code, answer.text.replace(name, "NAME")

    status, text = told(two.owned.collection)
    assert (status, text) == told("never-there-was-one")
    assert status == 422
    assert "There is no collection" in text


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if "manifest" in kind.input.model_fields])
def test_a_job_that_names_anothers_manifest_hears_that_there_is_none(two: Two, kind: str) -> None:
    two.b.put("/v1/collections/bobs")

    def told(sha256: str) -> tuple[int, str]:
        input_ = {"manifest": {"sha256": sha256}}
        if kind == "index":
            input_["collection"] = "bobs"  # type: ignore[assignment]
        answer = two.b.post("/v1/jobs", json={"kind": kind, "input": input_})
        return answer.status_code, answer.text.replace(sha256, "SHA")

    status, text = told(two.owned.manifest)
    assert (status, text) == told("ab" * 32)
    assert status == 422


def _errors(job: dict[str, Any]) -> list[Any]:
    items = job["result"].get("items") or job["result"]["results"]
    return [item.get("error") for item in items]


@pytest.mark.parametrize("kind", ["embed", "index", "search"])
def test_a_picture_of_another_is_not_there_even_if_its_vector_is(two: Two, kind: str) -> None:
    two.b.put("/v1/collections/bobs")
    picture = {"image": {"sha256": two.owned.image}}
    input_ = {
        "embed": {"items": [picture]},
        "index": {"collection": "bobs", "items": [picture]},
        "search": {"collection": "bobs", "queries": [picture]},
    }[kind]
    (error,) = _errors(run_job(two.b, kind, input_))
    assert error["code"] == "item_not_found"
    assert two.b.get("/v1/collections/bobs").json()["count"] == 0


def test_a_migration_does_not_embed_pictures_that_are_only_named(two: Two) -> None:
    """An item with a vector of its own may name any picture; that gives nobody the picture."""
    two.b.put("/v1/collections/labels")
    fingerprint = two.b.get("/v1/collections/labels").json()["model_fingerprint"]
    item = {"id": "x", "image": {"sha256": two.owned.image}, "vector": [1.0] * 16}
    run_job(two.b, "index", {"collection": "labels", "items": [item], "vectors_of": fingerprint})
    # Its vector by the other model is there already: it was computed for Ana.
    assert _errors(run_job(two.a, "embed", {"items": [{"image": item["image"]}]}, model="other")) == [None]
    job = run_job(two.b, "index", {"collection": "labels", "operation": "migrate"}, model="other")
    assert [error["code"] for error in _errors(job) if error] == ["invalid_item", "item_not_found"]
    assert two.b.get("/v1/collections/labels").json()["model"] == "words"


# --- a job that the API would not have taken -----------------------------------------------------------------------


def _slip_in(two: Two, kind: str, input_: dict[str, Any], items: list[Any] | None, **more: Any) -> dict[str, Any]:
    """Write a job of Bob's into the database, past the API; what became of it."""
    source = Range(0, 15) if items is None else Inline(items)
    job, _ = submit_job(
        two.house.runtime.db,
        NewJob(
            id=str(uuid4()), by=Caller("bob", "test", frozenset()), kind=kind, priority="normal",
            queue=queue_name(kind, "normal"), max_attempts=1, input=input_, total=1,
            chunks=[NewChunk(0, 1, source)], metadata={}, retention_s=3600.0, model="words",
            model_fingerprint="words-16", **more,
        ),
    )  # fmt: skip
    path = f"/v1/jobs/{job.id}"
    ended: dict[str, Any] = wait_until(lambda: (now := two.b.get(path).json())["done"] and now, what="its end")
    return {**ended, "result": two.b.get(f"{path}/result").json()}


def test_a_worker_keeps_to_the_jobs_tenant(two: Two) -> None:
    owned = two.owned
    there = {"collection": owned.collection}
    search = {**there, "k": 1, "queries": []}
    for kind, input_, items in (
        ("search", search, [{"text": "ana", "weight": 1.0}]),
        ("index", {**there, "operation": "upsert"}, [{"id": "x", "text": "y"}]),
        ("index", {**there, "operation": "delete"}, [owned.item_id]),
    ):
        job = _slip_in(two, kind, input_, items, collection=owned.collection)
        assert (job["status"], job["error"]["code"]) == ("failed", "not_found"), job
    job = _slip_in(two, "embed", {"manifest": {"sha256": owned.manifest}}, None)
    assert (job["status"], job["error"]["code"]) == ("failed", "item_not_found"), job
    job = _slip_in(two, "embed", {}, [{"image": {"sha256": owned.image}}])
    assert [error["code"] for error in _errors(job)] == ["item_not_found"]
    assert two.a.get(f"/v1/collections/{owned.collection}").json()["count"] == 1


# --- what was there before there were tenants ------------------------------------------------------------------------


def test_what_was_stored_before_tenants_is_the_default_ones_and_stays_it(two: Two) -> None:
    blobs = two.house.runtime.blobs
    old, young = (png(seed=seed) for seed in (901, 902))
    path = two.house.settings.data_dir / "blobs" / "images"
    named = {}
    for data in (old, young):
        sha256 = named[data] = blobs.put(data, "images")
        if data is old:
            os.utime(path / sha256[:2] / sha256[2:4] / sha256, (1e9, 1e9))
    with client_of(two.house, BOOTSTRAP) as default:
        assert two.b.get(f"/v1/images/{named[old]}").status_code == 404
        assert default.get(f"/v1/images/{named[young]}").status_code == 404, "since then everything has a row"
        assert two.b.post("/v1/images", content=old).status_code == 201
        assert default.get(f"/v1/images/{named[old]}").content == old, "though it has been put again since"
        assert _errors(run_job(default, "embed", {"items": [{"image": {"sha256": named[old]}}]})) == [None]
