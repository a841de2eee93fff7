"""What becomes of a text before its vector: the prompt of its use, and what is said of one that is cut."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from click.testing import CliRunner

from api.answers import ModelAnswer
from revln.cli.models import models as models_command
from revln.errors import ModelUnavailable, RevlnError
from revln.jobs.index_schemas import IndexResult
from revln.jobs.schemas import EmbedResult
from revln.jobs.search_schemas import SearchResult
from revln.models.base import ModelInfo, Operation
from revln.models.prompts import Prompts
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.word_model import WordCatalog, WordModel

LIMIT = 5


class Asker(WordModel):
    """A word model with prompts that reads five words, its prompt's among them."""

    def __init__(self) -> None:
        super().__init__("asker", 24)
        self.info = replace(self.info, prompts=Prompts("ask ", "tell "), max_tokens=LIMIT)

    def prepare(self, operation: Operation, item: Any) -> Any:
        if operation is Operation.EMBED_IMAGE:
            return super().prepare(operation, item)
        return " ".join(self._words(item)[:LIMIT])

    def count_tokens(self, text: str) -> int:
        return len(self._words(text))

    def _words(self, text: str) -> list[str]:
        assert self.info.prompts is not None
        return (self.info.prompts.before(text) + text).split()


class Catalog(WordCatalog):
    def __init__(self) -> None:
        super().__init__(asker=24, plain=24)
        self._models["asker"] = Asker()
        self.names = [*self.names, "typo"]

    def spec(self, name: str) -> Any:
        return super().spec("plain" if name == "typo" else name)

    def describe(self, name: str) -> ModelInfo:
        if name == "typo":
            raise ModelUnavailable("There is no folder /models/tpyo.")
        return super().describe(name)


@pytest.fixture(scope="module", params=DATABASES)
def inline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("texts")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, Catalog(), default_model="asker") as running,
    ):
        yield running


def run(inline: InlineStack, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    answer = inline.http.post("/v1/jobs", json={"kind": kind, "input": given}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["result"]
    {"embed": EmbedResult, "index": IndexResult, "search": SearchResult}[kind].model_validate(result)
    return result


def vector(text: str) -> Any:
    model = WordModel("asker", 24)
    return model.finish(Operation.EMBED_TEXT, model.forward(Operation.EMBED_TEXT, [text])[0])


def collection(inline: InlineStack, *texts: str, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    name = f"c-{uuid4().hex[:8]}"
    assert inline.http.put(f"/v1/collections/{name}", json={}).status_code == 201
    items = [{"id": str(at), "text": text} for at, text in enumerate(texts)]
    return name, run(inline, "index", {"collection": name, "items": items, **more})["items"]


def test_index_embeds_with_the_documents_prompt_and_search_with_the_queries(inline: InlineStack) -> None:
    name, _ = collection(inline, "dog")
    (found,) = run(inline, "search", {"collection": name, "queries": [{"text": "dog"}]})["results"]
    assert "hits" in found, found
    assert found["hits"][0]["score"] == pytest.approx(float(vector("ask dog") @ vector("tell dog")), abs=1e-5)
    # The other way round too, whichever was kept first.
    (item,) = run(inline, "embed", {"items": [{"text": "cat"}], "input_type": "query"})["items"]
    np.testing.assert_allclose(item["embedding"], vector("ask cat"), atol=1e-6)
    for said in ({}, {"input_type": "document"}):
        (item,) = run(inline, "embed", {"items": [{"text": "cat"}], **said})["items"]
        np.testing.assert_allclose(item["embedding"], vector("tell cat"), atol=1e-6)


def test_a_text_that_is_cut_says_so_with_its_tokens_however_its_vector_came(inline: InlineStack) -> None:
    long, short = f"{uuid4().hex} two three four five six seven", f"{uuid4().hex} two three"
    for _ in range(2):  # computed, and known
        one, two = run(inline, "embed", {"items": [{"text": long}, {"text": short}]})["items"]
        assert (one["truncated"], one["tokens"]) == (True, 8)
        assert "truncated" not in two
        np.testing.assert_allclose(one["embedding"], vector(f"tell {' '.join(long.split()[:4])}"), atol=1e-6)
    name, items = collection(inline, long, short)
    assert [(item.get("truncated"), item.get("tokens"), "seq" in item) for item in items] == [
        (True, 8, True), (None, None, True),
    ]  # fmt: skip
    queries = [{"text": long}, {"text": short}, [{"text": short}, {"text": long + " eight"}], {"id": "0"}]
    results = run(inline, "search", {"collection": name, "queries": queries})["results"]
    assert [one.get("tokens") for one in results] == [8, None, 9, None]
    assert all("hits" in one for one in results)


def test_a_text_that_would_be_cut_is_refused_where_the_job_asks_for_that(inline: InlineStack) -> None:
    long = "one two three four five six"
    one, two = run(inline, "embed", {"items": [{"text": long}, {"text": "dog"}], "truncate": False})["items"]
    assert one["error"]["code"] == "invalid_item"
    assert "has 7 tokens, and model asker reads 5. Shorten it" in one["error"]["detail"]
    assert len(two["embedding"]) == 24
    name, items = collection(inline, long, "dog", truncate=False)
    assert ["error" in item for item in items] == [True, False]
    results = run(inline, "search", {"collection": name, "queries": [{"text": long}], "truncate": False})["results"]
    assert "has 7 tokens" in results[0]["error"]["detail"]
    body = {"collection": name, "operation": "delete", "ids": ["1"], "truncate": True}
    assert inline.http.post("/v1/jobs", json={"kind": "index", "input": body}).status_code == 422


def test_models_show_what_they_read_and_their_prompts(inline: InlineStack) -> None:
    shown = {one["name"]: ModelAnswer.model_validate(one) for one in inline.http.get("/v1/models").json()["models"]}
    asker = shown["asker"]
    assert asker.max_tokens == LIMIT
    assert asker.prompts is not None
    assert (asker.prompts.query, asker.prompts.document) == ("ask ", "tell ")
    assert shown["plain"].prompts is None
    assert shown["typo"].error is not None
    assert shown["typo"].workers == []
    said = CliRunner().invoke(models_command, ["show", "asker", "--url", inline.url], catch_exceptions=False).output
    assert "at most 5 tokens" in said
    assert json.dumps({"query": "ask ", "document": "tell "}) in said


def test_to_load_what_is_known_to_be_wrong_says_so_at_once(inline: InlineStack) -> None:
    began = time.monotonic()
    done = CliRunner().invoke(models_command, ["load", "typo", "--url", inline.url], standalone_mode=False)
    assert (done.return_value, done.exception) == (1, None)
    assert "typo cannot be loaded: There is no folder /models/tpyo." in done.output
    done = CliRunner().invoke(models_command, ["load", "typpo", "--url", inline.url], standalone_mode=False)
    assert isinstance(done.exception, RevlnError)
    assert "There is no model 'typpo'" in str(done.exception)
    assert time.monotonic() - began < 5
