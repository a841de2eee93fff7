"""Captions of a model that the operator named, over HTTP: with another model's collection, near and far evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revln.models.base import CaptionOptions, CaptionRequest, Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings
from tests.pictures import noise, png
from tests.stack import DEADLINE_S, Stack, running_stack
from tests.tiny_captioners import save_vit_gpt2

ASKED = {"num_beams": 2, "num_captions": 2, "max_new_tokens": 8, "prompt": "a dog"}


@pytest.fixture(scope="module")
def vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit_gpt2(tmp_path_factory.mktemp("models") / "vit-gpt2")


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path, vit_gpt2: Path) -> Iterator[Stack]:
    models: dict[str, Any] = {name: {"source": str(small_checkpoint)} for name in ("revln-tiny", "strict")}
    models["strict"]["evidence_min_score"] = 1.0
    models["vit-gpt2"] = {"source": str(vit_gpt2)}
    with running_stack(tmp_path_factory.mktemp("stack"), models=json.dumps(models)) as stack:
        stack.client.create_collection("album")
        texts = [{"id": f"p{i}", "text": text} for i, text in enumerate(["a black dog runs", "two men play a guitar"])]
        run(stack, "index", {"collection": "album", "items": texts})
        yield stack


def sent(stack: Stack, seed: int) -> str:
    return str(stack.client.upload(png(seed=seed))["sha256"])


def run(stack: Stack, kind: str, body: dict[str, Any], model: str | None = None) -> list[dict[str, Any]]:
    job = stack.client.wait(stack.client.submit(kind, body, model=model)["id"], 2 * DEADLINE_S)
    assert job["status"] == "succeeded", job["error"]
    return list(stack.client.result(job["id"])["items"])


def test_a_named_captioner_captions_as_it_does_by_itself_with_evidence_from_another_models_collection(
    two_models: Stack, vit_gpt2: Path
) -> None:
    items = [{"image": {"sha256": sent(two_models, i)}} for i in (1, 7)]
    found = run(two_models, "caption", {"items": items, "collection": "album", "neighbors": 1, **ASKED}, "vit-gpt2")
    assert [len(item["evidence"]) for item in found] == [1, 1]
    assert found[0]["evidence"][0]["text"] in ("a black dog runs", "two men play a guitar")
    model = ModelCatalog({"m": ModelSettings(source=str(vit_gpt2))}).load("m", "cpu")
    options = CaptionOptions(num_beams=2, num_captions=2, max_new_tokens=8)
    for seed, item in zip((1, 7), found, strict=True):
        request = CaptionRequest(noise(64, 48, seed), prompt="a dog", options=options)
        (raw,) = model.forward(Operation.CAPTION, [model.prepare(Operation.CAPTION, request)])
        expected = model.finish(Operation.CAPTION, raw)
        assert [one["text"] for one in item["captions"]] == [one.text for one in expected]
        assert [one["log_prob"] for one in item["captions"]] == pytest.approx([one.log_prob for one in expected])
        assert item["captions"][0]["text"].startswith("a dog")


@pytest.mark.parametrize("model", [None, "vit-gpt2"])
def test_evidence_that_is_too_far_is_left_out_and_the_result_says_so(two_models: Stack, model: str | None) -> None:
    items = [{"image": {"sha256": sent(two_models, 9)}}]
    body: dict[str, Any] = {"items": items, "collection": "album", **ASKED}
    both = run(two_models, "caption", body, model)[0]["evidence"]
    first, second = (one["score"] for one in both)
    assert first - second > 1e-4
    (near,) = run(two_models, "caption", {**body, "evidence_min_score": (first + second) / 2}, model)
    assert near["evidence"] == both[:1]
    assert near.get("evidence_note") is None
    limit = round(first + 1e-3, 4)
    (far,) = run(two_models, "caption", {**body, "evidence_min_score": limit}, model)
    assert far["evidence"] == []
    assert f"below evidence_min_score {limit:g}" in far["evidence_note"]
    bare = run(two_models, "caption", {"items": items, **ASKED}, model or "revln-tiny")
    assert bare[0]["captions"] == far["captions"]
    assert "evidence_note" not in bare[0] or bare[0]["evidence_note"] is None


@pytest.mark.parametrize("model", [None, "vit-gpt2"])
def test_where_a_request_says_no_limit_the_operators_holds(two_models: Stack, model: str | None) -> None:
    name = f"strict-{model or 'own'}"
    two_models.client.create_collection(name, "strict")
    run(two_models, "index", {"collection": name, "items": [{"id": "p", "text": "a black dog runs"}]})
    body = {"items": [{"image": {"sha256": sent(two_models, 9)}}], "collection": name, **ASKED}
    (far,) = run(two_models, "caption", body, model)
    assert far["evidence"] == []
    assert "below evidence_min_score 1" in far["evidence_note"]
    (near,) = run(two_models, "caption", {**body, "evidence_min_score": -1}, model)
    assert [one["id"] for one in near["evidence"]] == ["p"]


def test_a_limit_without_a_collection_is_refused(two_models: Stack) -> None:
    body = {"items": [{"image": {"sha256": "0" * 64}}], "evidence_min_score": 0.2}
    answer = two_models.http.post("/v1/jobs", json={"kind": "caption", "input": body})
    assert answer.status_code == 422
    assert "name it" in answer.text


def test_a_captioner_embeds_nothing(two_models: Stack) -> None:
    answer = two_models.http.put("/v1/collections/other", json={"model": "vit-gpt2"})
    assert answer.status_code == 422, answer.text
    assert two_models.http.get("/v1/models").json()["models"][-1]["operations"] == ["caption"]
