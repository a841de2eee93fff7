"""What one answer may hold: pages and hits are bounded by their bytes, captions by their tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from tests.inline import InlineStack
from tests.integration.test_http_contract import problem
from tests.integration.test_search_over_http import own, run

DIM = 16_384


def long_items(count: int, dim: int) -> list[dict[str, Any]]:
    return [{"id": f"i{n}", "vector": [1.0] + [0.0] * (dim - 2) + [n], "text": f"{n} " * 500} for n in range(count)]


def test_a_page_of_items_ends_where_it_is_too_large_and_the_next_goes_on(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = own(inline, *long_items(7, DIM), dim=DIM)
    monkeypatch.setattr("api.routes.collections._PAGE_BYTES", 200_000)  # an item has 90 kB
    pages = list(inline.client.item_pages(name, vectors=True))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [item["id"] for page in pages for item in page] == [f"i{n}" for n in range(7)]
    assert [len(page) for page in inline.client.item_pages(name)] == [7], "without vectors they are small"
    monkeypatch.setattr("api.routes.collections._PAGE_BYTES", 1)
    assert [len(page) for page in inline.client.item_pages(name, page_items=2)] == [1] * 7


def test_a_page_of_a_result_that_is_too_large_says_how_many_items_are_not(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(inline, "embed", {"items": [{"text": f"text {n}"} for n in range(200)]})  # four chunks
    path, dim = job["urls"]["result"], job["result"]["dim"]
    monkeypatch.setattr("revln.db.jobs.results.PAGE_BYTES", 64 * dim * 4 * 5 * 2 + 30_000)
    refused = problem(inline.http.get(path), 422, "validation_failed")
    assert refused.errors is not None
    assert (refused.errors[0].pointer, "limit=128" in refused.detail) == ("/limit", True)
    assert len(inline.http.get(path, params={"limit": 128}).json()["items"]) == 128
    vectors = np.load(io.BytesIO(inline.http.get(path, headers={"Accept": "application/x-npy"}).content))
    assert vectors.shape == (200, dim), "as bytes they are a fifth"
    again = run(inline, "embed", {"items": [{"text": f"text {n}"} for n in range(200)]})
    assert len(again["result"]["items"]) == 128, "what came with a submission is cut"


def test_hits_that_are_too_much_together_are_one_querys_error(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = own(inline, *long_items(20, 4), dim=4)
    monkeypatch.setattr("worker.index.nearest._SHOWN_BYTES", 40_000)  # a hit has 1.2 kB
    monkeypatch.setattr("worker.index.nearest._ROWS", 5)
    ahead = {"vector": [1, 0, 0, 0]}
    many = run(inline, "search", {"collection": name, "queries": [ahead] * 4, "k": 10})["result"]["results"]
    assert [len(one.get("hits", ())) for one in many] == [10, 10, 10, 0]
    assert many[3]["error"]["code"] == "invalid_item"
    assert "may have 40,000" in many[3]["error"]["detail"]
    monkeypatch.setattr("worker.index.nearest._SHOWN_BYTES", 5_000)
    few = run(inline, "search", {"collection": name, "queries": [ahead], "k": 2})["result"]["results"]
    assert len(few[0]["hits"]) == 2
    job = run(inline, "search", {"collection": name, "queries": [ahead], "k": 20})
    assert job["error"]["code"] == "all_items_failed", "not all of them were even read"


def test_captions_without_end_are_refused_with_the_way_out(inline: InlineStack) -> None:
    lines = b'{"image": {"sha256": "%s"}}\n' % (b"0" * 64) * 100_000
    sha256 = inline.http.post("/v1/manifests", content=lines).json()["sha256"]
    input_ = {"manifest": {"sha256": sha256}, "num_beams": 16, "max_new_tokens": 64}
    refused = problem(inline.http.post("/v1/jobs", json={"kind": "caption", "input": input_}), 422, "validation_failed")
    for word in ("100,000 items", "num_beams=16", "max_new_tokens=64", "102,400,000", "REVLN_MAX_CAPTION_TOKENS"):
        assert word in refused.detail
    input_ |= {"temperature": 1.0, "num_captions": 16}
    answer = inline.http.post("/v1/jobs", json={"kind": "caption", "input": input_})
    assert "num_captions=16" in problem(answer, 422, "validation_failed").detail
