"""What DELETE takes away over HTTP, what it refuses to, and whom it tells."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import select

from revln.db import tables
from tests.inline import InlineStack
from tests.pictures import png


def upload(stack: InlineStack) -> str:
    answer = stack.http.post("/v1/images", content=png(seed=uuid4().int % 2**31))
    assert answer.status_code == 201
    sha256: str = answer.json()["sha256"]
    return sha256


def index(stack: InlineStack, given: dict[str, Any]) -> tuple[str, str]:
    """A finished index job on a new collection of own vectors: the collection, and the job."""
    name = f"c{uuid4().hex[:8]}"
    assert stack.http.put(f"/v1/collections/{name}", json={"dim": 2}).status_code == 201
    body = {"kind": "index", "input": {"collection": name, "operation": "upsert", **given}}
    job = stack.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"}).json()
    assert job["done"], job
    return name, job["id"]


def deleted(stack: InlineStack, path: str) -> tuple[int, str]:
    answer = stack.http.delete(path)
    return answer.status_code, answer.json()["detail"] if answer.content else ""


def test_a_picture_is_deleted_once_no_item_is_of_it(inline: InlineStack) -> None:
    sha256 = upload(inline)
    name, job = index(inline, {"items": [{"id": "a", "vector": [1, 0], "image": {"sha256": sha256}}]})
    status, why = deleted(inline, f"/v1/images/{sha256}")
    assert (status, name in why) == (409, True), why
    assert deleted(inline, f"/v1/collections/{name}")[0] == 204
    assert deleted(inline, f"/v1/images/{sha256}") == (204, "")
    assert not inline.runtime.blobs.exists(sha256)
    assert inline.http.get(f"/v1/images/{sha256}").status_code == 404
    assert deleted(inline, f"/v1/images/{sha256}")[0] == 404
    actions = inline.http.get("/v1/audit", params={"action": "image.delete"}).json()["entries"]
    assert actions[0]["what"] == sha256
    assert deleted(inline, f"/v1/jobs/{job}")[0] == 204


def test_a_manifest_is_deleted_once_no_job_needs_it(inline: InlineStack) -> None:
    lines = f'{{"id": "{uuid4().hex}", "vector": [1, 0]}}\n{{"id": "b"}}\n'.encode()
    sha256 = inline.http.post("/v1/manifests", content=lines).json()["sha256"]
    _, job = index(inline, {"manifest": {"sha256": sha256}})
    status, why = deleted(inline, f"/v1/manifests/{sha256}")
    assert (status, job in why) == (409, True), "an item of it failed, so the job may be retried"
    assert deleted(inline, f"/v1/jobs/{job}")[0] == 204
    assert deleted(inline, f"/v1/manifests/{sha256}") == (204, "")
    assert deleted(inline, f"/v1/manifests/{sha256}")[0] == 404
    assert not inline.runtime.blobs.exists(sha256, "manifests")
    again = {"kind": "index", "input": {"collection": "none", "operation": "upsert", "manifest": {"sha256": sha256}}}
    assert inline.http.post("/v1/jobs", json=again).status_code == 422


def test_what_a_body_brings_and_names_is_noted_with_its_job(inline: InlineStack) -> None:
    sha256, name = upload(inline), "0" * 64
    items = [{"id": str(at), "vector": [1, 0], "image": {"sha256": one}} for at, one in enumerate((sha256, name))]
    _, job = index(inline, {"items": items})
    with inline.runtime.db.read() as connection:
        noted = select(tables.job_uploads.c.sha256).where(tables.job_uploads.c.job_id == job)
        assert set(connection.scalars(noted)) == {sha256, name}


def test_the_client_deletes_uploads(inline: InlineStack) -> None:
    sha256 = upload(inline)
    inline.client.delete_upload(sha256)
    assert inline.http.get(f"/v1/images/{sha256}").status_code == 404
