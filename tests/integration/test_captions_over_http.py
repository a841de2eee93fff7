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
    models = {"revln-tiny": {"source": str(small_checkpoint)}, "vit-gpt2": {"source": str(vit_gpt2)}}
    with running_stack(tmp_path_factory.mktemp("stack"), models=json.dumps(models)) as stack:
        stack.client.create_collection("album")
        pictures = [{"id": f"p{i}", "image": {"sha256": sent(stack, i)}, "text": f"picture {i}"} for i in (1, 2)]
        run(stack, "index", {"collection": "album", "items": pictures})
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
    assert found[0]["evidence"] == [{"id": "p1", "text": "picture 1", "score": pytest.approx(1, abs=1e-4)}]
    assert len(found[1]["evidence"]) == 1
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
    items = [{"image": {"sha256": sent(two_models, i)}} for i in (1, 9)]
    body: dict[str, Any] = {"items": items, "collection": "album", **ASKED}
    best = [one["evidence"][0]["score"] for one in run(two_models, "caption", body, model)]
    assert best[0] - best[1] > 1e-5  # the picture that is in the collection, and one that is not
    limit = sum(best) / 2
    near, far = run(two_models, "caption", {**body, "evidence_min_score": limit}, model)
    assert near["evidence"][0]["id"] == "p1"
    assert near.get("evidence_note") is None
    assert far["evidence"] == []
    assert f"below evidence_min_score {limit:g}" in far["evidence_note"]
    bare = run(two_models, "caption", {"items": items[1:], **ASKED}, model or "revln-tiny")
    assert bare[0]["captions"] == far["captions"]
    assert "evidence_note" not in bare[0] or bare[0]["evidence_note"] is None


def test_a_limit_without_a_collection_is_refused(two_models: Stack) -> None:
    body = {"items": [{"image": {"sha256": "0" * 64}}], "evidence_min_score": 0.2}
    answer = two_models.http.post("/v1/jobs", json={"kind": "caption", "input": body})
    assert answer.status_code == 422
    assert "name it" in answer.text


def test_a_captioner_embeds_nothing(two_models: Stack) -> None:
    answer = two_models.http.put("/v1/collections/other", json={"model": "vit-gpt2"})
    assert answer.status_code == 422, answer.text
    assert two_models.http.get("/v1/models").json()["models"][-1]["operations"] == ["caption"]
