"""A change that takes long, and a quick one that was accepted after it: over HTTP, by the worker's own handlers."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from revln.jobs.index_schemas import IndexResult
from revln.models.base import Operation
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.integration.test_search_over_http import run
from tests.stack import wait_until
from tests.word_model import WordCatalog, WordModel

Says = dict[str, Any]
LIMIT_S = 60.0


class SlowCatalog(WordCatalog):
    """Its model reads texts that begin with "slow" when it is told to."""

    def __init__(self) -> None:
        super().__init__(words=8)
        self.go_on, self.reading = Event(), Event()
        model, prepare = self._models["words"], self._models["words"].prepare

        def wait(operation: Operation, item: Any) -> Any:
            if operation is Operation.EMBED_TEXT and str(item).startswith("slow"):
                self.reading.set()
                assert self.go_on.wait(LIMIT_S)
            return prepare(operation, item)

        model.prepare = wait  # type: ignore[method-assign]
        assert isinstance(model, WordModel)


@pytest.fixture(scope="module")
def catalog() -> SlowCatalog:
    return SlowCatalog()


@pytest.fixture(scope="module", params=DATABASES)
def inline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, catalog: SlowCatalog
) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("order")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, catalog, default_model="words") as running,
    ):
        yield running


def begin(inline: InlineStack, catalog: SlowCatalog, name: str, *items: Says) -> str:
    """Hand in an upsert that is being read and will not end until `end`."""
    catalog.go_on.clear()
    catalog.reading.clear()
    body = {"kind": "index", "input": {"collection": name, "items": list(items)}}
    answer = inline.http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    assert catalog.reading.wait(LIMIT_S)
    job: str = answer.json()["id"]
    return job


def end(inline: InlineStack, catalog: SlowCatalog, job: str) -> list[Says]:
    catalog.go_on.set()
    done = inline.client.wait(job)
    assert done["status"] == "succeeded", done
    result = inline.client.result(job)
    IndexResult.model_validate(result)
    items: list[Says] = result["items"]
    return items


def contents(inline: InlineStack, name: str) -> dict[str, str]:
    items = inline.http.get(f"/v1/collections/{name}/items").json()["items"]
    return {item["id"]: item["text"] for item in items}


@pytest.mark.parametrize(
    ("later", "left"),
    [
        (
            {"items": [{"id": "x", "text": "new", "vector": [1] * 8}], "vectors_of": "words-8"},
            {"x": "new", "y": "other"},
        ),
        ({"operation": "delete", "ids": ["x"]}, {"y": "other"}),
        ({"operation": "delete", "filter": {"old": True}}, {"y": "other"}),
    ],
    ids=["upsert", "delete", "filter"],
)
def test_a_slow_change_does_not_undo_the_quick_one_that_was_accepted_after_it(
    inline: InlineStack, catalog: SlowCatalog, later: Says, left: dict[str, str]
) -> None:
    name = f"order-{uuid4().hex[:12]}"
    assert inline.http.put(f"/v1/collections/{name}", json={}).status_code == 201
    slow = {"id": "x", "text": f"slow {name}", "metadata": {"old": True}}
    job = begin(inline, catalog, name, slow, {"id": "y", "text": "other"})
    quick = run(inline, "index", {"collection": name, **later})
    assert quick["status"] == "succeeded", quick
    x, y = end(inline, catalog, job)
    assert (x.get("superseded"), x.get("seq")) == (True, None)
    assert y["seq"] > 0
    assert y.get("superseded") is None
    assert contents(inline, name) == left


def test_the_later_of_two_lines_stands_whichever_is_computed_first(inline: InlineStack, catalog: SlowCatalog) -> None:
    name = f"order-{uuid4().hex[:12]}"
    assert inline.http.put(f"/v1/collections/{name}", json={}).status_code == 201
    others = [{"id": f"i{n}", "text": f"w{n}"} for n in range(63)]
    items = [{"id": "x", "text": f"slow {name}"}, *others, {"id": "x", "text": "last line"}]
    job = begin(inline, catalog, name, *items)
    done = end(inline, catalog, job)
    assert contents(inline, name)["x"] == "last line"
    assert done[64]["seq"] > 0


def test_a_result_is_read_in_pages_while_the_job_runs(inline: InlineStack, catalog: SlowCatalog) -> None:
    name = f"order-{uuid4().hex[:12]}"
    assert inline.http.put(f"/v1/collections/{name}", json={}).status_code == 201
    others = [{"id": f"i{n}", "text": f"w{n}"} for n in range(127)]
    job = begin(inline, catalog, name, {"id": "x", "text": f"slow {name}"}, *others)
    wait_until(lambda: inline.client.job(job)["counts"]["succeeded"] == 64, what="the second chunk")
    pages = list(inline.client.result_pages(job, page_items=32))
    assert [page["next_offset"] for page in pages] == [64, 96, None]
    seen = [item["index"] for page in pages for item in page["items"]]
    assert seen == list(range(64, 128))
    assert len(end(inline, catalog, job)) == 128
