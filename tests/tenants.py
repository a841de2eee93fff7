"""Two tenants in one house: their keys, their clients, and everything that one of them owns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import httpx

from tests.inline import InlineStack
from tests.pictures import png
from tests.stack import Stack, wait_until

__all__ = ["BOOTSTRAP", "Owned", "client_of", "make_key", "own_everything", "run_job"]

BOOTSTRAP = "bootstrap-key-of-the-tests"


@contextmanager
def client_of(house: InlineStack | Stack, key: str | None) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=house.url, headers=headers, timeout=60, trust_env=False) as http:
        yield http


def make_key(house: InlineStack | Stack, tenant: str, *scopes: str, **more: Any) -> dict[str, Any]:
    """A key as the operator makes it, over HTTP."""
    body = {"name": f"{tenant}'s", "tenant": tenant, "scopes": list(scopes), **more}
    with client_of(house, BOOTSTRAP) as operator:
        answer = operator.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def run_job(http: httpx.Client, kind: str, input_: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Submit and wait; the job with its result."""
    answer = http.post("/v1/jobs", json={"kind": kind, "input": input_, **more}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


@dataclass(frozen=True, slots=True)
class Owned:
    """The ids of one tenant's things, each of which is nobody else's business."""

    job_id: str
    idempotency_key: str
    collection: str
    item_id: str
    image: str
    manifest: str
    webhook: str
    webhook_secret: str
    key_id: str

    @property
    def all(self) -> list[str]:
        return list(astuple(self))


def own_everything(http: httpx.Client, key_id: str, word: str) -> Owned:
    image = http.post("/v1/images", content=png(seed=sum(word.encode()))).json()["sha256"]
    manifest = http.post("/v1/manifests", content=json.dumps({"text": word}).encode()).json()["sha256"]
    collection, item_id, idempotency_key = f"photos-of-{word}", f"item-of-{word}", f"key-of-{word}"
    assert http.put(f"/v1/collections/{collection}").status_code == 201
    items = [{"id": item_id, "image": {"sha256": image}, "text": word}]
    assert run_job(http, "index", {"collection": collection, "items": items})["counts"]["failed"] == 0
    answer = http.post(
        "/v1/jobs",
        json={
            "kind": "embed",
            "input": {"items": [{"id": item_id, "image": {"sha256": image}}]},
            "webhook": {"url": f"https://receiver.example/{word}"},
        },
        headers={"Idempotency-Key": idempotency_key},
    )
    job_id = answer.json()["id"]
    wait_until(lambda: http.get(f"/v1/jobs/{job_id}").json()["done"], what="the job's end")
    webhook = http.get(f"/v1/jobs/{job_id}/webhooks").json()["webhooks"][0]["id"]
    secret = http.get("/v1/webhooks/secret").json()["secrets"][0]["secret"]
    return Owned(job_id, idempotency_key, collection, item_id, image, manifest, webhook, secret, key_id)
