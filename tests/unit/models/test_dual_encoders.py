"""Dual encoders against a direct call of transformers on the same checkpoint, batched against single."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from revln.errors import ItemInvalid, ModelUnavailable
from revln.models.base import Model, Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings
from tests.tiny_models import DUAL_ENCODERS, LEAST_COSINE, TEXTS, clip_tokenizer, photo, save_clip, save_gemma_siglip

PICTURES = [photo(i, 60 + 20 * i, 90 - 10 * i) for i in range(4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dual-encoders")
    return {name: make(root / name) for name, make in DUAL_ENCODERS.items()}


def load(folder: Path, device: str = "cpu", **spec: Any) -> Model:
    return ModelCatalog({"m": ModelSettings(source=str(folder), **spec)}).load("m", device)


def run(model: Model, operation: Operation, items: list[Any]) -> NDArray[np.float32]:
    raws = model.forward(operation, [model.prepare(operation, item) for item in items])
    return np.stack([model.finish(operation, raw) for raw in raws])


def direct(folder: Path, operation: Operation, items: list[Any]) -> NDArray[np.float32]:
    """What the library's own documentation says to do."""
    net = transformers.AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        if operation is Operation.EMBED_TEXT:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            padding = "max_length" if "siglip" in folder.name else True
            features = net.get_text_features(
                **tokenizer(
                    items, padding=padding, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
                )
            )
        else:
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            features = net.get_image_features(**processor(items, return_tensors="pt"))
    return torch.nn.functional.normalize(features.pooler_output, dim=-1).numpy()


@pytest.mark.parametrize("family", DUAL_ENCODERS)
@pytest.mark.parametrize(
    ("operation", "items"),
    [(Operation.EMBED_TEXT, TEXTS), (Operation.EMBED_IMAGE, PICTURES)],
    ids=["texts", "pictures"],
)
def test_vectors_equal_the_librarys_and_a_batch_its_single_items(
    folders: dict[str, Path], family: str, operation: Operation, items: list[Any]
) -> None:
    model = load(folders[family])
    assert model.info.family == family  # found out by itself
    vectors = run(model, operation, items)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(items), model.info.dim)
    np.testing.assert_allclose(vectors, direct(folders[family], operation, items), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    single = np.concatenate([run(model, operation, [item]) for item in items])
    np.testing.assert_allclose(vectors, single, atol=2e-6)
    # Two items are told apart: else all of the above would hold for a model that sees nothing.
    assert (vectors @ vectors.T)[0, 1] < 0.95


@pytest.mark.parametrize("family", DUAL_ENCODERS)
def test_preparing_in_many_threads_gives_what_one_thread_gives(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family])
    items = [(Operation.EMBED_TEXT, text) for text in TEXTS] + [(Operation.EMBED_IMAGE, each) for each in PICTURES]
    alone = [model.prepare(*item) for item in items]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: model.prepare(*item), items * 12))
    for i, prepared in enumerate(together):
        for name, value in alone[i % len(items)].items():
            assert np.array_equal(np.asarray(value), np.asarray(prepared[name]))


def test_an_empty_text_is_that_items_error(folders: dict[str, Path]) -> None:
    with pytest.raises(ItemInvalid, match="empty"):
        load(folders["clip"]).prepare(Operation.EMBED_TEXT, " \n ")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_give_nearly_the_same_vectors(folders: dict[str, Path], dtype: str) -> None:
    whole, half = load(folders["clip"]), load(folders["clip"], dtype=dtype)
    assert half.dtype == dtype
    for operation, items in ((Operation.EMBED_TEXT, TEXTS), (Operation.EMBED_IMAGE, PICTURES)):
        cosines = (run(whole, operation, items) * run(half, operation, items)).sum(axis=1)
        assert cosines.min() > 0.995, (operation, cosines)


def test_other_ways_to_save_are_read_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights in shards; weights in half precision; a preprocessor_config.json and vocab files, as older versions."""
    expected = run(load(folders["clip"]), Operation.EMBED_TEXT, TEXTS)
    shards = save_clip(tmp_path / "shards", max_shard_size="100KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    model = load(shards)
    assert model.info.parameters == load(folders["clip"]).info.parameters
    np.testing.assert_allclose(run(model, Operation.EMBED_TEXT, TEXTS), expected, atol=1e-6)

    halved = load(save_clip(tmp_path / "half", dtype=torch.float16))
    assert (run(halved, Operation.EMBED_TEXT, TEXTS) * expected).sum(axis=1).min() > 0.999

    old = save_clip(tmp_path / "old")
    images = json.loads((old / "processor_config.json").read_text())["image_processor"]
    (old / "processor_config.json").unlink()
    (old / "preprocessor_config.json").write_text(json.dumps(images))
    vocab = clip_tokenizer().get_vocab()
    (old / "tokenizer.json").unlink()
    (old / "vocab.json").write_text(json.dumps(vocab))
    (old / "merges.txt").write_text("#version: 0.2\n")
    model = load(old)
    assert model.info.image_size == load(folders["clip"]).info.image_size
    np.testing.assert_allclose(run(model, Operation.EMBED_TEXT, TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(
        run(model, Operation.EMBED_IMAGE, PICTURES), direct(folders["clip"], Operation.EMBED_IMAGE, PICTURES), atol=1e-6
    )


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_chance(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"text_projection\.weight"):
        load(folder)


@pytest.mark.gpu
@pytest.mark.parametrize("family", DUAL_ENCODERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_gpu_gives_the_processors_vectors(folders: dict[str, Path], family: str, dtype: str) -> None:
    on_cpu, on_gpu = load(folders[family]), load(folders[family], device="cuda", dtype=dtype)
    for operation, items in ((Operation.EMBED_TEXT, TEXTS), (Operation.EMBED_IMAGE, PICTURES)):
        assert (run(on_cpu, operation, items) * run(on_gpu, operation, items)).sum(axis=1).min() >= LEAST_COSINE[dtype]


def test_a_siglip_2_with_gemmas_tokenizer_reads_lower_case_as_the_library_intends(tmp_path: Path) -> None:
    folder = save_gemma_siglip(tmp_path / "m")
    model = load(folder)
    assert (model.info.family, model.info.max_tokens) == ("siglip", 16)
    texts = ["A Dog", "a dog", "ΣΑΣ Ünder DOG", "SNOW"]
    # The library's own tokenizer of SigLIP 2, called as its documentation says.
    read = transformers.Siglip2Tokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        features = transformers.AutoModel.from_pretrained(folder).get_text_features(**read)
    assert list(read) == ["input_ids"]
    expected = torch.nn.functional.normalize(features.pooler_output, dim=-1).numpy()
    vectors = run(model, Operation.EMBED_TEXT, texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.99999
    # Vectors of texts that were made before may not meet these.
    named = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "tokenizer_class": "Siglip2Tokenizer"}))
    assert load(folder, family="siglip2").info.family == "siglip2"
    np.testing.assert_allclose(run(load(folder), Operation.EMBED_TEXT, texts), expected, atol=1e-6)
