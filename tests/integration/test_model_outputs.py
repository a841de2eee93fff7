"""A model that gives NaN, an infinity or no direction: that item's error, never an answer that is not JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import insert, update

from revln.access import DEFAULT_TENANT
from revln.db import tables
from revln.models.base import Caption, ModelInfo, Operation
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.pictures import png
from tests.word_model import WordCatalog, WordModel
from worker.embedding import text_content

WRONG = {"naught": np.nan, "endless": np.inf, "minus": -np.inf}


class WrongModel(WordModel):
    """As a word model, but for some words; ``at_once``: for all of them, the warm-up's too."""

    def __init__(self, name: str, dim: int, *, at_once: bool = False) -> None:
        super().__init__(name, dim)
        self._at_once = at_once

    def finish(self, operation: Operation, raw: Any) -> Any:
        vector = np.asarray(raw, dtype=np.float32)
        vector = vector / np.linalg.norm(vector) if np.isfinite(vector).all() else vector
        if self._at_once:
            vector[3] = np.nan
        return vector

    def _text(self, text: str) -> Any:
        vector = super()._text(text)
        for word, value in WRONG.items():
            if word in text:
                vector[2] = value
        return vector


class Nothing(WordModel):
    """Gives no direction, or too few numbers."""

    def finish(self, operation: Operation, raw: Any) -> Any:
        return np.zeros(self.info.dim or 0, np.float32) if raw[0] else np.ones(1, np.float32)

    def _text(self, text: str) -> Any:
        return [0.0] if "short" in text else [1.0]


class Doubter:
    """A captioner that is sure of nothing once it has warmed up."""

    device, dtype = "cpu", "float16"

    def __init__(self) -> None:
        self.info = ModelInfo("doubter", "fake", (Operation.CAPTION,), None, "doubter-1", 16)
        self._warm = False

    def prepare(self, operation: Operation, item: Any) -> Any:
        return item

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:
        return operation

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        return list(batch)

    def finish(self, operation: Operation, raw: Any) -> Any:
        warm, self._warm = self._warm, True
        return (Caption("a dog", float("nan") if warm else -1.0),)

    def max_batch(self, operation: Operation) -> int:
        return 8


class Catalog(WordCatalog):
    def __init__(self) -> None:
        super().__init__(wrong=24, broken=24, empty=24, doubter=1)
        made: list[Any] = [WrongModel("wrong", 24), WrongModel("broken", 24, at_once=True), Nothing("empty", 24)]
        self._models = {model.info.name: model for model in [*made, Doubter()]}


@pytest.fixture(scope="module", params=DATABASES)
def inline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("outputs")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, Catalog(), default_model="wrong") as running,
    ):
        yield running


def strict(content: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(content, parse_constant=refuse)


def run(inline: InlineStack, kind: str, given: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    body = {"kind": kind, "input": given, **({"model": model} if model else {})}
    answer = inline.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = strict(answer.content)
    strict(inline.http.get(f"/v1/jobs/{job['id']}/result").content)
    return job


@pytest.mark.parametrize(("word", "said"), [("naught", "nan"), ("endless", "inf"), ("minus", "-inf")])
def test_a_vector_that_is_not_finite_is_that_items_error(inline: InlineStack, word: str, said: str) -> None:
    items = [{"text": f"a dog {uuid4().hex}"}, {"text": f"{word} {uuid4().hex}"}]
    for _ in range(2):  # the second time nothing comes from what was kept
        job = run(inline, "embed", {"items": items})
        good, bad = job["result"]["items"]
        assert len(good["embedding"]) == 24
        assert bad["error"]["code"] == "item_failed"
        assert f"gave {said} as number" in bad["error"]["detail"]
        assert "Send another item" in bad["error"]["detail"]
        assert job["counts"] == {"total": 2, "succeeded": 1, "failed": 1}


def test_an_item_of_nan_is_in_no_collection_and_no_query(inline: InlineStack) -> None:
    name = f"c-{uuid4().hex[:8]}"
    assert inline.http.put(f"/v1/collections/{name}", json={}).status_code == 201
    job = run(
        inline, "index", {"collection": name, "items": [{"id": "1", "text": "naught"}, {"id": "2", "text": "dog"}]}
    )
    assert [("error" in item) for item in job["result"]["items"]] == [True, False]
    assert inline.http.get(f"/v1/collections/{name}").json()["count"] == 1
    queries = [{"text": "naught dog"}, {"text": "dog"}, [{"text": "dog"}, {"text": "endless", "weight": 0.1}]]
    results = run(inline, "search", {"collection": name, "queries": queries})["result"]["results"]
    assert ["hits" in one for one in results] == [False, True, False]


@pytest.mark.parametrize(
    ("model", "said"), [("empty", "a vector of length 0 instead of 1"), ("broken", "gave nan as number 3")]
)
def test_a_model_that_does_it_at_warm_up_has_failed(inline: InlineStack, model: str, said: str) -> None:
    job = run(inline, "embed", {"items": [{"text": "a dog"}]}, model)
    assert job["status"] == "failed"
    assert said in job["error"]["detail"]


def test_a_caption_without_a_probability_is_that_items_error(inline: InlineStack) -> None:
    sha256 = inline.client.upload(png())["sha256"]
    run(inline, "caption", {"items": [{"image": {"sha256": sha256}}]}, "doubter")
    (item,) = run(inline, "caption", {"items": [{"image": {"sha256": sha256}}], "seed": 1}, "doubter")["result"][
        "items"
    ]
    assert "gave a caption of log-probability nan" in item["error"]["detail"]


def test_what_was_kept_before_is_neither_told_nor_used(inline: InlineStack) -> None:
    text = f"a cat {uuid4().hex}"
    nan = np.full(24, np.nan, dtype="<f4").tobytes()
    with inline.runtime.db.write() as connection:
        row = {
            "fingerprint": "wrong-24",
            "content_key": text_content(text, DEFAULT_TENANT).key,
            "vector": nan,
            "created_at": 0.0,
        }
        connection.execute(insert(tables.embeddings).values(**row))
    job = run(inline, "embed", {"items": [{"text": text}]})
    assert np.isfinite(job["result"]["items"][0]["embedding"]).all()
    with inline.runtime.db.write() as connection:
        connection.execute(update(tables.results).where(tables.results.c.job_id == job["id"]).values(vectors=nan))
    (item,) = strict(inline.http.get(f"/v1/jobs/{job['id']}/result").content)["items"]
    assert "vector with NaN" in item["error"]["detail"]
