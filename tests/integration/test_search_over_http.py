"""Searching, filtering and changing collections over HTTP, mostly of vectors that the tests bring along."""

from __future__ import annotations

import base64
import json
import math
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from api.answers import CollectionAnswer, CollectionPage
from revln.jobs.search_schemas import SearchResult
from tests.inline import InlineStack
from tests.stack import Stack

AnyStack = Stack | InlineStack
DIM = 4


def own(stack: AnyStack, *items: dict[str, Any], dim: int = DIM) -> str:
    """A new collection of our own vectors, with these items in it."""
    name = f"own-{uuid4().hex[:12]}"
    answer = stack.http.put(f"/v1/collections/{name}", json={"dim": dim})
    assert answer.status_code == 201, answer.text
    if items:
        job = run(stack, "index", {"collection": name, "items": list(items)})
        assert job["counts"]["failed"] == 0, job
    return name


def run(stack: AnyStack, kind: str, input_: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = stack.http.post("/v1/jobs", json={"kind": kind, "input": input_, **more}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def refused(stack: AnyStack, kind: str, input_: dict[str, Any], pointer: str, says: str, **more: Any) -> None:
    answer = stack.http.post("/v1/jobs", json={"kind": kind, "input": input_, **more})
    assert answer.status_code == 422, answer.text
    errors = answer.json()["errors"]
    assert [error["pointer"] for error in errors] == [pointer]
    assert says in errors[0]["detail"]


def found(stack: AnyStack, name: str, *queries: Any, **more: Any) -> list[list[dict[str, Any]]]:
    job = run(stack, "search", {"collection": name, "queries": list(queries), **more})
    assert job["counts"]["failed"] == 0, job
    SearchResult.model_validate(job["result"])
    return [one["hits"] for one in job["result"]["results"]]


def ids(stack: AnyStack, name: str, query: Any, **more: Any) -> list[str]:
    return [hit["id"] for hit in found(stack, name, query, **more)[0]]


def ring(count: int) -> list[dict[str, Any]]:
    """Items around a quarter of a circle: the nearest to (1, 0, 0, 0) are i0, i1, i2, …"""
    return [
        {
            "id": f"i{n}",
            "vector": [math.cos(n / count), math.sin(n / count), 0, 0],
            "metadata": {"n": n, "even": n % 2 == 0},
            "text": f"item {n}",
        }
        for n in range(count)
    ]


AHEAD = {"vector": [1, 0, 0, 0]}


# --- vectors of one's own ------------------------------------------------------------------------------------------


def test_a_collection_of_ones_own_vectors_is_searched_by_vector_and_by_id(stack: Stack) -> None:
    name = own(stack, *ring(6))
    shown = stack.http.get(f"/v1/collections/{name}").json()
    CollectionAnswer.model_validate(shown)
    assert (shown["model"], shown["dim"], shown["count"]) == (None, DIM, 6)
    by_vector, by_id = found(stack, name, {"vector": [5, 0, 0, 0]}, {"id": "i5"}, k=2)
    assert [hit["id"] for hit in by_vector] == ["i0", "i1"]
    assert by_vector[0] == {
        "id": "i0", "score": 1.0, "text": "item 0", "metadata": {"n": 0, "even": True}, "image": None
    }  # fmt: skip
    assert by_vector[1]["score"] == pytest.approx(math.cos(1 / 6), abs=1e-6)
    assert [hit["id"] for hit in by_id] == ["i5", "i4"]
    assert stack.http.put(f"/v1/collections/{name}").status_code == 200  # it is what it is
    for other in ({"dim": 5}, {"model": "revln-tiny"}):
        assert stack.http.put(f"/v1/collections/{name}", json=other).status_code == 409
    assert stack.http.put(f"/v1/collections/{name}", json={"dim": 4, "model": "revln-tiny"}).status_code == 422


def test_a_bad_vector_is_its_own_items_error(stack: Stack) -> None:
    def b64(*values: float) -> str:
        return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()

    items: list[tuple[dict[str, Any], str | None]] = [
        ({"vector": [1, 2, 3, 4]}, None),
        ({"vector": [1, 2, 3]}, "3 dimensions"),
        ({"vector": [0, 0, 0, 0]}, "no direction"),
        ({"vector_b64": b64(1, 2, 3, 4)}, None),
        ({"vector_b64": b64(1, 2, math.nan, 4)}, "Number 2 of the vector is nan"),
        ({"vector_b64": b64(1, 2, math.inf, 4)}, "Number 2 of the vector is inf"),
        ({"vector_b64": b64(*range(5))}, "5 dimensions"),
        ({"vector_b64": "AAAAA"}, "not base64"),
        ({"vector_b64": "AAAA"}, "3 bytes"),
        ({"vector": [1e90, 0, 0, 0]}, None),
        ({"text": "no vector"}, "has no model"),
        ({"vector": [1, 1, 1, 1], "image": {"url": "http://example.org/a.jpg"}}, "upload it"),
    ]
    sent = [{"id": str(n), **item} for n, (item, _) in enumerate(items)]
    name = own(stack)
    lines = b"".join(json.dumps(item).encode() + b"\n" for item in sent)
    manifest = stack.http.post("/v1/manifests", content=lines).json()["sha256"]
    for source in ({"items": sent}, {"manifest": {"sha256": manifest}}):
        results = run(stack, "index", {"collection": name, **source})["result"]["items"]
        for (_, says), result in zip(items, results, strict=True):
            assert (says in result["error"]["detail"]) if says else ("seq" in result), result
    assert stack.http.get(f"/v1/collections/{name}").json()["count"] == 3


def test_what_has_no_meaning_without_a_model_is_refused_with_the_way_out(stack: Stack) -> None:
    name = own(stack, *ring(2))
    search = {"collection": name, "k": 1}
    text = [AHEAD, [AHEAD, {"text": "a dog", "weight": -1}]]
    refused(stack, "search", {**search, "queries": text}, "/input/queries/1/1/text", "by vector or by id")
    refused(stack, "search", {**search, "queries": [AHEAD]}, "/model", "leave it out", model="revln-tiny")
    refused(stack, "search", {**search, "queries": [AHEAD], "min_score": "auto"}, "/input/min_score", "as a number")
    image = {"items": [{"image": {"sha256": "0" * 64}}], "collection": name}
    refused(stack, "caption", image, "/input/collection", "only a model's")
    double = {"id": "x", "vector": [1, 0, 0, 0], "vector_b64": "AAAA"}
    refused(stack, "index", {"collection": name, "items": [double]}, "/input/items/0", "either")


def test_a_vector_goes_into_a_models_collection_only_with_that_models_name_on_it(stack: Stack) -> None:
    name = f"made-{uuid4().hex[:12]}"
    made = stack.http.put(f"/v1/collections/{name}").json()
    item = {"id": "a", "vector": [1.0, *[0.0] * (made["dim"] - 1)], "text": "kept, not embedded"}
    plain = {"collection": name, "items": [item]}
    bad = run(stack, "index", plain)
    assert bad["status"] == "failed"
    assert made["model_fingerprint"] in bad["result"]["items"][0]["error"]["detail"]
    answer = stack.http.post("/v1/jobs", json={"kind": "index", "input": {**plain, "vectors_of": "another"}})
    assert (answer.status_code, answer.json()["code"]) == (409, "fingerprint_mismatch")
    assert run(stack, "index", {**plain, "vectors_of": made["model_fingerprint"]})["status"] == "succeeded"
    assert found(stack, name, {"vector": item["vector"]})[0][0]["text"] == "kept, not embedded"


# --- filters -------------------------------------------------------------------------------------------------------


def test_a_filter_narrows_a_search_a_listing_and_a_delete_alike(stack: Stack) -> None:
    name = own(stack, *ring(40))
    wanted = {"n": {"gte": 10, "lt": 20}, "even": True}
    expected = ["i10", "i12", "i14", "i16", "i18"]
    assert ids(stack, name, AHEAD, k=100, filter=wanted) == expected
    listed = stack.http.get(f"/v1/collections/{name}/items", params={"filter": json.dumps(wanted), "limit": 3}).json()
    CollectionPage.model_validate(listed)
    rest = stack.http.get(
        f"/v1/collections/{name}/items",
        params={"filter": json.dumps(wanted), "limit": 3, "cursor": listed["next_cursor"]},
    ).json()
    assert [item["id"] for item in listed["items"] + rest["items"]] == expected
    gone = run(stack, "index", {"collection": name, "operation": "delete", "filter": wanted})
    assert gone["result"]["items"] == [{"index": 0, "id": None, "deleted": 5, "seq": 45}]
    assert ids(stack, name, AHEAD, k=100, filter=wanted) == []
    assert stack.http.get(f"/v1/collections/{name}").json()["count"] == 35
    again = run(stack, "index", {"collection": name, "operation": "delete", "filter": wanted})
    assert again["result"]["items"][0]["deleted"] == 0


def test_a_filter_sees_every_change_that_has_succeeded(stack: Stack) -> None:
    name = own(stack, *ring(4))
    even = {"even": True}
    assert ids(stack, name, AHEAD, filter=even) == ["i0", "i2"]
    run(stack, "index", {"collection": name, "items": [
        {"id": "i0", "vector": [1, 0, 0, 0], "metadata": {"even": False}},
        {"id": "i1", "vector": [1, 0, 0, 0], "metadata": {"even": True}},
        {"id": "new", "vector": [0, 1, 0, 0], "metadata": {"even": True}},
    ]})  # fmt: skip
    run(stack, "index", {"collection": name, "operation": "delete", "ids": ["i2"]})
    assert ids(stack, name, AHEAD, filter=even) == ["i1", "new"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"missing": 1}, []),
        ({"missing": {"exists": False}}, ["i0", "i1", "i2"]),
        ({"n": "x' OR 1=1; DROP TABLE vectors; --"}, []),
        ({"n' OR 1=1 --": 1}, []),
        ({"or": [{"n": 2}, {"not": {"n": {"gt": 0}}}]}, ["i0", "i2"]),
        ({"n": {"in": [1, "2", None]}}, ["i1"]),
        ({"even": 1}, []),
        ({"n": None}, []),
    ],
)
def test_what_filters_let_through(stack: Stack, wanted: dict[str, Any], expected: list[str]) -> None:
    name = own(stack, *ring(3))
    assert ids(stack, name, AHEAD, filter=wanted) == expected


def test_a_filter_that_cannot_be_read_is_422_with_the_place(stack: Stack) -> None:
    name = own(stack)
    deep: Any = {"a": 1}
    for _ in range(100):
        deep = {"not": deep}
    search = {"collection": name, "queries": [AHEAD]}
    refused(stack, "search", {**search, "filter": deep}, "/input/filter" + "/not" * 16, "16 deep")
    refused(stack, "search", {**search, "filter": {"a": {"gt": True}}}, "/input/filter/a/gt", "number or a string")
    refused(stack, "search", {**search, "filter": {}}, "/input/filter", "empty")
    bad = {"collection": name, "operation": "delete", "filter": {"or": [{"a": 1}, {"b": {"around": 3}}]}}
    refused(stack, "index", bad, "/input/filter/or/1/b/around", "no operator")
    both = {"collection": name, "operation": "delete", "filter": {"a": 1}, "ids": ["x"]}
    refused(stack, "index", both, "/input", "exactly one of ids, filter")
    for given, pointer in (('{"a": {"gt": []}}', "/filter/a/gt"), ("{", "/filter"), ("[" * 5_000, "/filter")):
        answer = stack.http.get(f"/v1/collections/{name}/items", params={"filter": given})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    lonely = {"items": [{"image": {"sha256": "0" * 64}}], "filter": {"a": 1}}
    refused(stack, "caption", lonely, "/input", "name the collection")


# --- what a search finds -------------------------------------------------------------------------------------------


def test_pages_put_together_are_the_whole_and_ties_are_in_a_fixed_order(stack: Stack) -> None:
    same = [{"id": f"s{n}", "vector": [0, 1, 0, 0]} for n in range(7)]
    name = own(stack, *same, *ring(5))
    whole = ids(stack, name, AHEAD, k=100)
    assert whole == ["i0", "i1", "i2", "i3", "i4", "s0", "s1", "s2", "s3", "s4", "s5", "s6"]
    pages = [ids(stack, name, AHEAD, k=5, offset=offset) for offset in (0, 5, 10, 15)]
    assert [one for page in pages for one in page] == whole
    refused(stack, "search", {"collection": name, "queries": [AHEAD], "k": 1000, "offset": 9001}, "/input", "10,000")


def test_k_above_the_count_gives_all_and_an_empty_collection_gives_none(stack: Stack) -> None:
    assert len(ids(stack, own(stack, *ring(3)), AHEAD, k=1000)) == 3
    assert ids(stack, own(stack), AHEAD, k=1000, filter={"a": 1}, dedup=True) == []


def test_a_least_score_cuts_off_what_is_farther(stack: Stack) -> None:
    name = own(stack, *ring(10))
    assert ids(stack, name, AHEAD, min_score=0.985) == ["i0", "i1"]
    opposite = found(stack, name, {"vector": [-1, 0, 0, 0]}, k=100)[0]
    assert opposite[-1]["score"] == -1.0
    refused(stack, "search", {"collection": name, "queries": [AHEAD], "min_score": "most"}, "/input/min_score", "auto")


def test_near_duplicates_are_shown_once_and_the_page_is_still_full(stack: Stack) -> None:
    def near(n: int, copies: int) -> list[dict[str, Any]]:
        x, y = math.cos(0.4 * n), math.sin(0.4 * n)
        return [{"id": f"{n}-{copy}", "vector": [x, y, 0.003 * copy, 0]} for copy in range(copies)]

    name = own(stack, *near(0, 40), *near(1, 3), *near(2, 1))
    plain = ids(stack, name, AHEAD, k=3)
    assert plain == ["0-0", "0-1", "0-2"]
    hits = found(stack, name, AHEAD, k=3, dedup=True)[0]
    assert [hit["id"] for hit in hits] == ["0-0", "1-0", "2-0"]
    assert hits[0]["duplicates"] == [f"0-{n}" for n in range(1, 40)]
    assert [hit["duplicates"] for hit in hits[1:]] == [["1-1", "1-2"], []]
    assert ids(stack, name, AHEAD, k=1, offset=1, dedup=0.97) == ["1-0"]
    assert ids(stack, name, AHEAD, k=2, dedup=0.9999999) == ["0-0", "0-1"]
    refused(stack, "search", {"collection": name, "queries": [AHEAD], "dedup": 0.1}, "/input/dedup", "0.5")


def test_the_querys_own_items_can_be_left_out(stack: Stack) -> None:
    name = own(stack, *ring(5))
    assert ids(stack, name, {"id": "i2"}, k=1) == ["i2"]
    assert ids(stack, name, {"id": "i2"}, k=2, exclude_self=True) == ["i1", "i3"]
    assert ids(stack, name, [{"id": "i1"}, {"id": "i3"}], k=1, exclude_self=True) == ["i2"]
    # One that is left out stands for nobody: its near-duplicates are hits of their own.
    assert ids(stack, name, {"id": "i2"}, k=5, exclude_self=True, dedup=0.95)[0] == "i1"


def test_parts_are_weighed_and_those_that_cannot_be_read_fail_alone(stack: Stack) -> None:
    name = own(stack, *ring(5), {"id": "up", "vector": [0, 0, 1, 0]})
    toward, away = found(stack, name, [AHEAD, {"id": "up", "weight": 2}], [AHEAD, {"id": "up", "weight": -2}], k=6)
    assert toward[0]["id"] == "up"
    assert toward[0]["score"] == pytest.approx(2 / math.sqrt(5), abs=1e-6)
    assert (away[-1]["id"], away[-1]["score"]) == ("up", pytest.approx(-2 / math.sqrt(5), abs=1e-6))
    run(stack, "index", {"collection": name, "operation": "delete", "ids": ["i4"]})
    queries = [{"id": "i4"}, [AHEAD, {"id": "never"}], [AHEAD, {"id": "i0", "weight": -1}], {"id": "i3"}]
    job = run(stack, "search", {"collection": name, "queries": queries, "k": 1})
    codes = [one.get("error", {}).get("code") for one in job["result"]["results"]]
    assert codes == ["item_not_found", "item_not_found", "invalid_item", None]


def test_a_listing_gives_vectors_that_can_be_sent_back_bit_for_bit(stack: Stack) -> None:
    rows = np.random.default_rng(5).standard_normal((50, DIM))
    name = own(stack, *({"id": f"{n:02}", "vector": row.tolist(), "metadata": {"n": n}} for n, row in enumerate(rows)))
    listed = stack.http.get(f"/v1/collections/{name}/items", params={"vectors": True}).json()["items"]
    back = [{name: item[name] for name in ("id", "vector_b64", "metadata")} for item in listed]
    again = stack.http.get(f"/v1/collections/{own(stack, *back)}/items", params={"vectors": True}).json()["items"]
    assert [item["vector_b64"] for item in again] == [item["vector_b64"] for item in listed]
    for item, row in zip(listed, rows, strict=True):
        vector = np.frombuffer(base64.b64decode(item["vector_b64"]), dtype="<f4")
        assert np.allclose(vector, row / np.linalg.norm(row), atol=1e-7)


def test_a_collection_deleted_under_a_search_is_an_error_or_what_was_found(stack: Stack) -> None:
    name = own(stack, *ring(5))
    open_jobs = [
        stack.client.submit("search", {"collection": name, "queries": [AHEAD] * 20, "k": 5}) for _ in range(10)
    ]
    assert stack.http.delete(f"/v1/collections/{name}").status_code == 204
    for job in (stack.client.wait(job["id"], 60) for job in open_jobs):
        assert job["status"] in ("succeeded", "failed")
        if job["status"] == "failed":
            assert job["error"]["code"] == "not_found"
    refused(stack, "search", {"collection": name, "queries": [AHEAD]}, "/input/collection", "no collection")
