"""The whole road, over HTTP, on both databases."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import select

from revln.db.engine import Database, db_now
from revln.db.workers import list_workers
from tests.stack import Stack, wait_until


def submit(stack: Stack, kind: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = stack.http.post("/v1/jobs", json={"kind": kind, "input": body, **more}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def upload(stack: Stack, data: bytes) -> str:
    answer = stack.http.post("/v1/images", content=data)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["sha256"])


def photo(seed: int) -> bytes:
    """A picture of one colour: even an untrained network tells those apart."""
    colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    out = io.BytesIO()
    Image.new("RGB", (96, 72), colour).save(out, "PNG")
    return out.getvalue()


def test_embed_gives_unit_vectors_in_the_order_of_the_items(stack: Stack) -> None:
    sha = upload(stack, photo(1))
    items = [{"id": "a", "text": "a dog"}, {"id": "b", "image": {"sha256": sha}}, {"text": "a dog"}]
    job = submit(stack, "embed", {"items": items})
    assert (job["status"], job["counts"]) == ("succeeded", {"total": 3, "succeeded": 3, "failed": 0})
    result = job["result"]
    vectors = np.array([item["embedding"] for item in result["items"]])
    assert [item["id"] for item in result["items"]] == ["a", "b", None]
    assert result["dim"] == vectors.shape[1] == 32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2]), "one text has one vector"
    assert not np.allclose(vectors[0], vectors[1])


def computed_items(stack: Stack) -> int:
    """How many items the worker's models have run, by a heartbeat that is younger than this call."""
    db = Database(stack.settings.resolved_database_url)
    with db.read() as connection:
        asked_at = connection.scalar(select(db_now()))

    def heard() -> list[int] | None:
        with db.read() as connection:
            fresh = [worker for worker in list_workers(connection) if worker["heartbeat_at"] > asked_at]
        return [sum(model.get("items", 0) for model in worker["models"]) for worker in fresh] or None

    counts: list[int] = wait_until(heard, what="a heartbeat")
    db.close()
    return sum(counts)


def test_one_picture_in_three_jobs_is_computed_once(stack: Stack) -> None:
    item = {"image": {"sha256": upload(stack, photo(4711))}}
    before = computed_items(stack)
    with ThreadPoolExecutor(3) as pool:
        jobs = list(pool.map(lambda _: submit(stack, "embed", {"items": [item, item]}), range(3)))
    vectors = [one["embedding"] for job in jobs for one in job["result"]["items"]]
    assert all(vector == vectors[0] for vector in vectors)
    assert computed_items(stack) - before == 1


def test_one_bad_item_among_many_is_one_error(stack: Stack) -> None:
    good = [{"id": str(n), "image": {"sha256": upload(stack, photo(n))}} for n in range(20)]
    items = [*good[:10], {"id": "bad", "image": {"sha256": "0" * 64}}, *good[10:]]
    job = submit(stack, "embed", {"items": items})
    assert (job["status"], job["counts"]["failed"]) == ("succeeded", 1)
    by_id = {item["id"]: item for item in job["result"]["items"]}
    assert by_id["bad"]["error"]["code"] == "item_not_found"
    alone = submit(stack, "embed", {"items": [good[13]]})["result"]["items"][0]
    assert np.dot(alone["embedding"], by_id["13"]["embedding"]) > 0.9999


def test_a_result_page_is_the_same_as_json_and_as_npy(stack: Stack) -> None:
    items = [{"text": f"text number {n}"} for n in range(150)]
    items[70] = {"image": {"sha256": "1" * 64}}
    job = submit(stack, "embed", {"items": items})
    page = stack.http.get(job["urls"]["result"], params={"offset": 60, "limit": 20}).json()
    raw = stack.http.get(
        job["urls"]["result"], params={"offset": 60, "limit": 20}, headers={"Accept": "application/x-npy"}
    )
    rows = np.load(io.BytesIO(raw.content), allow_pickle=False)
    assert rows.shape == (20, 32)
    assert [item["index"] for item in page["items"]] == list(range(60, 80))
    assert np.isnan(rows[10]).all()
    assert "error" in page["items"][10]
    for row, item in zip(rows, page["items"], strict=True):
        if "embedding" in item:
            assert np.allclose(row, item["embedding"])


def test_index_then_search_finds_what_was_indexed_by_every_kind_of_query(stack: Stack) -> None:
    shas = [upload(stack, photo(100 + n)) for n in range(5)]
    assert stack.http.put("/v1/collections/menagerie", json={}).status_code == 201
    items = [{"id": f"p{n}", "image": {"sha256": sha}, "text": f"picture {n}", "metadata": {"n": n}} for n, sha in
             enumerate(shas)]  # fmt: skip
    indexed = submit(stack, "index", {"collection": "menagerie", "items": items})
    assert [item["seq"] for item in indexed["result"]["items"]] == [1, 2, 3, 4, 5]
    assert indexed["result"]["head_seq"] == 5
    vector = submit(stack, "embed", {"items": [{"image": {"sha256": shas[2]}}]})["result"]["items"][0]["embedding"]
    queries = [
        {"image": {"sha256": shas[2]}},
        {"id": "p2"},
        {"vector": [2 * x for x in vector]},
        [{"id": "p2"}, {"text": "a dog", "weight": 0.01}],
    ]
    found = submit(stack, "search", {"collection": "menagerie", "queries": queries, "k": 3})["result"]
    for result in found["results"]:
        assert result["hits"][0]["id"] == "p2", result
        assert result["hits"][0]["score"] > 0.99
        assert result["hits"][0]["metadata"] == {"n": 2}
        assert result["hits"][0]["text"] == "picture 2"
        assert result["hits"][0]["image"] == {"sha256": shas[2]}
        scores = [hit["score"] for hit in result["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3
    assert found["seq"] == 5


def test_an_upsert_replaces_and_a_delete_removes(stack: Stack) -> None:
    stack.http.put("/v1/collections/notes", json={})
    submit(stack, "index", {"collection": "notes", "items": [{"id": "x", "text": "old"}, {"id": "y", "text": "other"}]})
    submit(stack, "index", {"collection": "notes", "items": [{"id": "x", "text": "new"}]})

    def ids(query: str) -> list[tuple[str, str]]:
        result = submit(stack, "search", {"collection": "notes", "queries": [{"text": query}], "k": 10})["result"]
        return [(hit["id"], hit["text"]) for hit in result["results"][0]["hits"]]

    assert ids("new")[0] == ("x", "new")
    assert sorted(ids("old")) == [("x", "new"), ("y", "other")]
    gone = submit(stack, "index", {"collection": "notes", "operation": "delete", "ids": ["x", "never"]})
    assert gone["counts"] == {"total": 2, "succeeded": 1, "failed": 1}
    assert gone["result"]["items"][1]["error"]["code"] == "item_not_found"
    assert ids("new") == [("y", "other")]
    assert stack.http.get("/v1/collections/notes").json()["count"] == 1
    listed = stack.http.get("/v1/collections/notes/items").json()
    assert [item["id"] for item in listed["items"]] == ["y"]


def test_a_caption_comes_with_its_evidence(stack: Stack) -> None:
    stack.http.put("/v1/collections/captions", json={})
    texts = [{"id": f"c{n}", "text": text} for n, text in enumerate(["a dog", "two men", "snow", "a child", "a car"])]
    submit(stack, "index", {"collection": "captions", "items": texts})
    sha = upload(stack, photo(7))
    job = submit(
        stack,
        "caption",
        {"items": [{"id": "p", "image": {"sha256": sha}}, {"id": "gone", "image": {"sha256": "2" * 64}}],
         "collection": "captions", "neighbors": 3, "num_captions": 2, "num_beams": 3},
    )  # fmt: skip
    first, second = job["result"]["items"]
    assert len(first["captions"]) == 2
    assert first["captions"][0]["log_prob"] <= 0
    assert len(first["evidence"]) == 3
    assert first["evidence"][0]["score"] >= first["evidence"][1]["score"]
    assert second["error"]["code"] == "item_not_found"


def test_a_manifest_of_many_lines_is_one_job_and_its_bad_lines_are_item_errors(stack: Stack) -> None:
    lines = [json.dumps({"id": f"m{n}", "text": f"line {n}"}) for n in range(300)]
    lines[5], lines[77] = "{not json", json.dumps({"id": "empty"})
    sent = stack.http.post("/v1/manifests", content="\n".join(lines).encode())
    assert (sent.status_code, sent.json()["lines"]) == (201, 300)
    job = submit(stack, "embed", {"manifest": {"sha256": sent.json()["sha256"]}})
    assert job["counts"] == {"total": 300, "succeeded": 298, "failed": 2}
    page = stack.http.get(job["urls"]["result"]).json()["items"]
    assert [item["index"] for item in page if "error" in item] == [5, 77]
    assert page[299]["id"] == "m299"


def test_a_thousand_mixed_jobs_from_eight_clients_all_end_once(stack: Stack) -> None:
    sha = upload(stack, photo(3))
    stack.http.put("/v1/collections/mixed", json={})
    submit(stack, "index", {"collection": "mixed", "items": [{"id": "seed", "text": "seed"}]})

    def body(n: int) -> dict[str, Any]:
        return [
            {"kind": "embed", "input": {"items": [{"text": f"job {n}"}]}},
            {"kind": "index", "input": {"collection": "mixed", "items": [{"id": f"i{n}", "text": f"item {n}"}]}},
            {"kind": "search", "input": {"collection": "mixed", "queries": [{"text": f"query {n}"}], "k": 2}},
            {"kind": "embed", "input": {"items": [{"image": {"sha256": sha}}]}, "priority": "interactive"},
        ][n % 4]

    def client(start: int) -> list[str]:
        tagged = {"metadata": {"tag": "mixed"}}
        return [stack.http.post("/v1/jobs", json={**body(n), **tagged}).json()["id"] for n in range(start, 1000, 8)]

    with ThreadPoolExecutor(8) as pool:
        ids = [job_id for made in pool.map(client, range(8)) for job_id in made]
    assert len(set(ids)) == 1000

    def some(status: str) -> bool:
        found = stack.http.get("/v1/jobs", params={"status": status, "tag": "mixed", "limit": 1})
        return bool(found.json()["jobs"])

    def all_done() -> bool:
        return not some("queued") and not some("running")

    wait_until(all_done, 150, "the end of all jobs")
    head = stack.http.get("/v1/collections/mixed").json()
    assert (head["head_seq"], head["count"]) == (251, 251), "each index job left one row, none two"
    assert not some("failed")
    assert len(list(stack.client.jobs(tag="mixed", status="succeeded", limit=200))) == 1000
