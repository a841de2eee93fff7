"""Sentence encoders and torchvision networks against a direct call of the library, batched against single."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from revln.errors import ItemInvalid, ModelUnavailable
from revln.models.base import Model, Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings
from tests.tiny_models import LEAST_COSINE, TEXTS, photo, save_sentence

PICTURES = [photo(i, 300 - 20 * i, 260 + 30 * i) for i in range(3)]


def load(source: Path, **spec: Any) -> Model:
    return ModelCatalog({"m": ModelSettings(source=str(source), **spec)}).load("m", "cpu")


def run(model: Model, operation: Operation, items: list[Any]) -> NDArray[np.float32]:
    raws = model.forward(operation, [model.prepare(operation, item) for item in items])
    return np.stack([model.finish(operation, raw) for raw in raws])


def unit(vectors: torch.Tensor) -> NDArray[np.float32]:
    return nn.functional.normalize(vectors, dim=-1).numpy()


def states(folder: Path, max_tokens: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """The library's own states of all texts in one batch, and the mask."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.inference_mode():
        found = transformers.AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    return found, inputs["attention_mask"][:, :, None].float()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_sentence_encoder_pools_as_its_folder_says(tmp_path: Path, pooling: str) -> None:
    folder = save_sentence(tmp_path / "m", pooling)
    model = load(folder)
    assert (model.info.family, model.info.dim, model.info.operations) == ("sentence", 32, (Operation.EMBED_TEXT,))
    vectors = run(model, Operation.EMBED_TEXT, TEXTS)
    found, mask = states(folder)
    expected = {
        "mean": (found * mask).sum(1) / mask.sum(1),
        "cls": found[:, 0],
        "max": torch.where(mask > 0, found, -torch.inf).amax(1),
    }[pooling]
    np.testing.assert_allclose(vectors, unit(expected), atol=1e-6)
    single = np.concatenate([run(model, Operation.EMBED_TEXT, [text]) for text in TEXTS])
    np.testing.assert_allclose(vectors, single, atol=2e-6)
    assert (vectors @ vectors.T)[0, 1] < 0.99
    with pytest.raises(ItemInvalid):
        model.prepare(Operation.EMBED_TEXT, "  ")


def test_dense_layers_and_prompts_are_applied_and_change_the_fingerprint(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m", dense=8)
    model = load(folder)
    assert model.info.dim == 8
    found, mask = states(folder)
    layer = load_file(folder / "2_Dense/model.safetensors")
    pooled = (found * mask).sum(1) / mask.sum(1)
    expected = torch.tanh(pooled @ layer["linear.weight"].T + layer["linear.bias"])
    np.testing.assert_allclose(run(model, Operation.EMBED_TEXT, TEXTS), unit(expected), atol=1e-6)

    prompts = {"prompts": {"query": "a dog "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    prompted = load(folder)
    assert prompted.info.fingerprint != model.info.fingerprint
    np.testing.assert_allclose(
        run(prompted, Operation.EMBED_TEXT, ["snow"]), run(model, Operation.EMBED_TEXT, ["a dog snow"]), atol=1e-6
    )
    layer["linear.bias"] += 1
    save_file(layer, folder / "2_Dense/model.safetensors")
    assert load(folder).info.fingerprint != prompted.info.fingerprint


def test_a_module_that_revln_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_LSTM", "type": "sentence_transformers.models.LSTM"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnavailable, match="LSTM"):
        load(folder)


def test_a_bare_bert_is_pooled_by_its_mean(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "m")
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    found, mask = states(folder, max_tokens=32)
    expected = unit((found * mask).sum(1) / mask.sum(1))
    np.testing.assert_allclose(run(load(folder), Operation.EMBED_TEXT, TEXTS), expected, atol=1e-6)


def save_cnn(folder: Path, network: str) -> nn.Module:
    torch.manual_seed(3)
    net = torchvision.models.get_model(network, weights=None, num_classes=5).eval()
    folder.mkdir()
    save_file(net.state_dict(), folder / "weights.safetensors")
    return net


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small"])
def test_a_torchvision_networks_features_are_what_goes_into_its_classifier(tmp_path: Path, network: str) -> None:
    net = save_cnn(tmp_path / "m", network)
    model = load(tmp_path / "m", family=f"cnn:{network}")
    transform = torchvision.models.get_model_weights(network).DEFAULT.transforms()
    seen: list[torch.Tensor] = []
    last = net.fc if network == "resnet18" else net.classifier[-1]
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        net(torch.stack([transform(picture) for picture in PICTURES]))
    vectors = run(model, Operation.EMBED_IMAGE, PICTURES)
    assert vectors.shape == (3, model.info.dim)
    np.testing.assert_allclose(vectors, unit(seen[0]), atol=1e-5)
    single = np.concatenate([run(model, Operation.EMBED_IMAGE, [picture]) for picture in PICTURES])
    np.testing.assert_allclose(vectors, single, atol=1e-5)


def test_the_preprocessing_of_other_weights_is_another_model(tmp_path: Path) -> None:
    save_cnn(tmp_path / "m", "resnet50")
    file = tmp_path / "m/weights.safetensors"
    catalog = ModelCatalog(
        {
            name: ModelSettings(source=str(source), family=family)
            for name, source, family in (
                ("folder", file.parent, "cnn:resnet50"),
                ("file", file, "cnn:resnet50"),
                ("v1", file, "cnn:resnet50:IMAGENET1K_V1"),
            )
        }
    )
    infos = {name: catalog.describe(name) for name in ("folder", "file", "v1")}
    assert infos["folder"].dim == infos["v1"].dim == 2048
    assert infos["folder"].fingerprint == infos["file"].fingerprint != infos["v1"].fingerprint
    first, other = (catalog.load(name, "cpu").prepare(Operation.EMBED_IMAGE, PICTURES[0]) for name in ("file", "v1"))
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("cnn:resnet34", "does not fit"),
        ("cnn:resnet9000", "no such network"),
        ("cnn:resnet18:IMAGENET22K_V9", "no such network or weights"),
        ("auto", "no config.json"),
    ],
)
def test_weights_that_are_no_such_network_are_refused(tmp_path: Path, family: str, says: str) -> None:
    save_cnn(tmp_path / "m", "resnet18")
    with pytest.raises(ModelUnavailable, match=says):
        load(tmp_path / "m", family=family)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gpu_gives_the_processors_vectors(tmp_path: Path, dtype: str) -> None:
    save_cnn(tmp_path / "cnn", "resnet18")
    save_sentence(tmp_path / "sentence")
    for name, family, operation, items in (
        ("cnn", "cnn:resnet18", Operation.EMBED_IMAGE, PICTURES),
        ("sentence", "auto", Operation.EMBED_TEXT, TEXTS),
    ):
        on_cpu = run(load(tmp_path / name, family=family), operation, items)
        on_gpu = run(load(tmp_path / name, family=family, device="cuda", dtype=dtype), operation, items)
        assert (on_cpu * on_gpu).sum(axis=1).min() >= LEAST_COSINE[dtype]
