"""The near-duplicates of a whole collection, over HTTP and on the command line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from click.testing import CliRunner

from revln.cli.main import cli
from revln.jobs.index_schemas import IndexResult
from tests.inline import InlineStack
from tests.integration.test_search_over_http import own, refused, run


def heap(name: str, angle: float, count: int, step: float = 0.05, **metadata: Any) -> list[dict[str, Any]]:
    """Items in a row, each ``step`` from the next."""
    return [
        {"id": f"{name}{n}", "vector": [math.cos(angle + step * n), math.sin(angle + step * n), 0, 0],
         "metadata": metadata}
        for n in range(count)
    ]  # fmt: skip


def report(inline: InlineStack, name: str, **more: Any) -> list[dict[str, Any]]:
    job = run(inline, "index", {"collection": name, "operation": "duplicates", **more})
    assert (job["status"], job["counts"]["failed"]) == ("succeeded", 0), job
    assert job["counts"]["total"] == job["result"]["total"] == len(job["result"]["items"])
    IndexResult.model_validate(job["result"])
    items: list[dict[str, Any]] = job["result"]["items"]
    return items


def test_near_duplicates_are_reported_in_groups_with_one_that_stands_for_each(inline: InlineStack) -> None:
    name = own(inline, *heap("a", 0.0, 3), *heap("b", 1.0, 2, year=2020), *heap("c", 2.0, 1))
    head, first, second = report(inline, name)
    assert head["report"] == {"items": 6, "groups": 2, "duplicates": 3, "min_score": 0.97, "exact": True}
    assert (first["index"], first["id"], first["size"]) == (1, "a1", 3)
    assert first["duplicates"] == [
        {"id": "a0", "score": pytest.approx(math.cos(0.05), abs=1e-6)},
        {"id": "a2", "score": pytest.approx(math.cos(0.05), abs=1e-6)},
    ]
    assert (second["id"], [one["id"] for one in second["duplicates"]]) == ("b0", ["b1"])
    assert [one["id"] for one in report(inline, name, filter={"year": 2020})[1:]] == ["b0"]
    # Together by a chain, though its ends are far apart; and not at all if more is asked for.
    chained = own(inline, *heap("d", 0.0, 12, 0.2))
    assert [one["size"] for one in report(inline, chained, min_score=0.98)[1:]] == [12]
    assert [one.get("report", {}).get("groups") for one in report(inline, chained, min_score=0.99)] == [0]


def test_the_report_is_read_in_pages_and_follows_every_change(inline: InlineStack) -> None:
    pairs = [item for n in range(9) for item in heap(f"p{n}-", 0.3 * n, 2, 0.01)]
    name = own(inline, *pairs)
    run(inline, "index", {"collection": name, "operation": "delete", "ids": ["p0-0"]})
    run(inline, "index", {"collection": name, "items": [{"id": "p1-0", "vector": [0, 0, 1, 0]}]})
    job = inline.client.submit("index", {"collection": name, "operation": "duplicates"})
    inline.client.wait(job["id"], 60)
    pages = list(inline.client.result_pages(job["id"], page_items=3))
    assert [len(page["items"]) for page in pages] == [3, 3, 2]
    assert [item["id"] for page in pages for item in page["items"]][1:] == [f"p{n}-0" for n in range(2, 9)]


def test_an_empty_collection_has_no_duplicates_and_bad_requests_name_the_field(inline: InlineStack) -> None:
    name = own(inline)
    assert report(inline, name)[0]["report"]["items"] == 0
    asked = {"collection": name, "operation": "duplicates"}
    refused(inline, "index", {**asked, "ids": ["a"]}, "/input", "leave out ids")
    refused(inline, "index", {**asked, "min_score": 0.1}, "/input/min_score", "0.5")
    refused(
        inline, "index", {**asked, "operation": "delete", "ids": ["a"], "exact": True}, "/input", "exact belongs to"
    )


def test_duplicates_are_deleted_by_two_commands(inline: InlineStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVLN_PUBLIC_URL", inline.url)
    name = own(inline, *heap("a", 0.0, 3), *heap("b", 1.0, 2), *heap("c", 2.0, 1))
    shown = CliRunner().invoke(cli, ["index", "duplicates", name])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(f"{name}: 6 items, 2 groups of near-duplicates, 3 could go")
    ids = CliRunner().invoke(cli, ["index", "duplicates", name, "--ids"])
    assert ids.output.split() == ["a0", "a2", "b1"]
    gone = CliRunner().invoke(cli, ["index", "delete", name, "--ids-from", "-", "--json"], input=ids.output)
    assert gone.exit_code == 0, gone.output
    assert [item["id"] for item in json.loads(gone.output)["items"]] == ["a0", "a2", "b1"]
    assert inline.client.collection(name)["count"] == 3
    lines = '{"id": "c9", "vector": [0, 0, 0, 1]}\n{"id": "c9"}\n'
    written = CliRunner().invoke(cli, ["index", "upsert", name, "-"], input=lines, standalone_mode=False)
    assert written.return_value == 1, written.output
    assert "1 failed" in written.output
    assert "an item needs an image, a text, or both" in written.output
    assert inline.client.collection(name)["count"] == 4
    by_filter = CliRunner().invoke(cli, ["index", "delete", name, "--filter", '{"x": {"exists": false}}'])
    assert by_filter.exit_code == 0, by_filter.output
    assert inline.client.collection(name)["count"] == 0
    assert CliRunner().invoke(cli, ["index", "delete", name]).exit_code == 2
