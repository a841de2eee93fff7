"""Models that the operator names, served by real processes: as the library computes them, loaded and unloaded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from api.answers import ModelAnswer, ModelOrderAnswer, ModelsAnswer, Problem
from revln.cli.models import models as models_command
from tests.stack import Stack, running_stack, wait_until
from tests.tiny_models import DUAL_ENCODERS, TEXTS, photo

FAMILIES = ("clip", "siglip")
PICTURES = [photo(i, 80 + 20 * i, 100 - 10 * i) for i in range(3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {family: DUAL_ENCODERS[family](root / family) for family in FAMILIES}
    made["damaged"] = DUAL_ENCODERS["clip"](root / "damaged")
    # Its description is whole, so that jobs are taken in; only a worker finds out.
    (made["damaged"] / "tokenizer.json").write_text("{")
    made["malformed"] = DUAL_ENCODERS["clip"](root / "malformed")
    (made["malformed"] / "config.json").write_text('{"model_type": "clip", "projection_dim": null}')
    return made


@pytest.fixture(scope="module")
def served(
    folders: dict[str, Path], small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    named = {name: {"source": str(folder)} for name, folder in {**folders, "revln-tiny": small_checkpoint}.items()}
    named["absent"] = {"source": str(small_checkpoint / "nothing-here")}
    with running_stack(tmp_path_factory.mktemp("stack"), models=json.dumps(named), torch_threads=1) as stack:
        yield stack


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def uploaded(stack: Stack) -> list[str]:
    return [stack.client.upload(png(picture))["sha256"] for picture in PICTURES]


def direct(folder: Path) -> NDArray[np.float32]:
    """Texts, then pictures, by transformers alone."""
    net = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if folder.name == "siglip" else True
    texts = tokenizer(
        TEXTS, padding=padding, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    pictures = transformers.AutoImageProcessor.from_pretrained(folder)(PICTURES, return_tensors="pt")
    with torch.inference_mode():
        both = [net.get_text_features(**texts).pooler_output, net.get_image_features(**pictures).pooler_output]
    return torch.nn.functional.normalize(torch.cat(both), dim=-1).numpy()


def run(stack: Stack, kind: str, given: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    job = stack.client.submit(kind, given, model=model, wait_s=60)
    assert job["status"] == "succeeded", job
    return stack.client.result(job["id"])


def model(stack: Stack, name: str) -> ModelAnswer:
    return ModelAnswer.model_validate_json(stack.http.get(f"/v1/models/{name}").content)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_over_http_are_the_librarys(served: Stack, folders: dict[str, Path], family: str) -> None:
    items: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    items += [{"image": {"sha256": sha}} for sha in uploaded(served)]
    result = run(served, "embed", {"items": items}, model=family)
    expected = direct(folders[family])
    assert (result["model"], result["dim"]) == (family, expected.shape[1])
    np.testing.assert_allclose([item["embedding"] for item in result["items"]], expected, atol=1e-4)


def test_a_collection_of_such_a_model_is_filled_and_searched(served: Stack, folders: dict[str, Path]) -> None:
    name = f"c-{uuid4().hex[:8]}"
    assert served.client.create_collection(name, "clip")["dim"] == model(served, "clip").dim
    items = [{"id": str(i), "image": {"sha256": sha}} for i, sha in enumerate(uploaded(served))]
    run(served, "index", {"collection": name, "items": items})
    query = {"collection": name, "queries": [{"text": TEXTS[0]}], "k": 3}
    (found,) = run(served, "search", query)["results"]
    vectors = direct(folders["clip"])
    scores = vectors[len(TEXTS) :] @ vectors[0]
    assert [hit["id"] for hit in found["hits"]] == [str(i) for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], np.sort(scores)[::-1], atol=1e-4)


@pytest.mark.parametrize("name", ["gpt-9", "../../etc/passwd", "openai/clip-vit-base-patch32", "/", "clip/"])
def test_a_request_can_name_nothing_but_a_configured_model(served: Stack, folders: dict[str, Path], name: str) -> None:
    wanted = str(folders["clip"]) if name == "/" else name
    body = {"kind": "embed", "model": wanted, "input": {"items": [{"text": "a"}]}}
    answer = served.http.post("/v1/jobs", json=body)
    problem = Problem.model_validate_json(answer.content)
    assert answer.status_code == 422
    assert problem.errors is not None
    assert problem.errors[0].pointer == "/model"
    assert "GET /v1/models" in problem.detail
    made = served.http.put(f"/v1/collections/c-{uuid4().hex[:8]}", json={"model": wanted})
    assert made.status_code == 422


def test_an_unknown_name_is_not_found_in_the_list_either(served: Stack) -> None:
    for call in (("GET", "/v1/models/gpt-9"), ("POST", "/v1/models/gpt-9/load"), ("POST", "/v1/models/gpt-9/unload")):
        answer = served.http.request(*call)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), call


def test_an_order_to_load_or_unload_is_carried_out_by_the_worker(served: Stack) -> None:
    def ordered(wanted: str) -> str:
        answer = served.http.post(f"/v1/models/siglip/{wanted}")
        assert answer.status_code == 202
        order = ModelOrderAnswer.model_validate_json(answer.content)
        (asked,) = order.workers

        def done() -> str | None:
            shown = [one for one in model(served, "siglip").workers or () if one.worker == asked]
            return shown[0].state if shown and shown[0].order >= order.order else None

        return str(wait_until(done, what=f"the order to {wanted}"))

    assert ordered("load") == "loaded"
    shown = model(served, "siglip")
    assert shown.loaded
    assert shown.workers is not None
    assert shown.workers[0].size_bytes == 4 * (shown.parameters or 0)
    assert ordered("unload") == "unloaded"
    assert not model(served, "siglip").loaded
    # The next job loads it again.
    assert run(served, "embed", {"items": [{"text": f"a {uuid4().hex}"}]}, model="siglip")["items"]


def test_a_damaged_model_fails_its_jobs_with_one_sentence_and_no_others(served: Stack) -> None:
    body = {"items": [{"text": "a dog"}]}
    job = served.client.submit("embed", body, model="damaged", wait_s=60)
    assert (job["status"], job["error"]["code"]) == ("failed", "model_unavailable")
    assert "Tokenizer cannot read" in job["error"]["detail"]
    assert run(served, "embed", {"items": [{"text": f"a {uuid4().hex}"}]}, model="clip")["items"]
    absent = {one.name: one for one in ModelsAnswer.model_validate_json(served.http.get("/v1/models").content).models}
    assert absent["absent"].error is not None
    assert "There is no folder" in absent["absent"].error.detail
    assert absent["malformed"].error is not None
    assert "is malformed" in absent["malformed"].error.detail


def test_the_command_loads_shows_and_unloads(served: Stack) -> None:
    def revln(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(
            models_command, [*arguments, "--url", served.url], standalone_mode=False, catch_exceptions=False
        )
        return done.return_value or 0, done.output

    code, output = revln("load", "clip")
    assert (code, ": loaded, on cpu in float32" in output) == (0, True), output
    code, output = revln("show", "clip")
    assert "fingerprint: clip-" in output
    assert "chunks use it" in output
    code, output = revln("unload", "clip")
    assert (code, ": unloaded" in output) == (0, True), output
    code, output = revln("load", "damaged")
    assert (code, "Tokenizer cannot read" in output) == (1, True), output
    code, output = revln()
    assert "revln-tiny (default)" in output
    assert "cannot be used: There is no folder" in output
    assert json.loads(revln("show", "clip", "--json")[1])["name"] == "clip"
