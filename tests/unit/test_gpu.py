"""On a GPU: the results of a CPU, batches sent ahead, memory given back. Skipped where there is none."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revln.jobs.kinds import Priority
from revln.models.base import Model, Operation, Overlapping
from revln.models.registry import BUILT_IN, ModelCatalog
from revln.settings import ModelSettings, Settings
from tests.tiny_models import LEAST_COSINE, TEXTS, photo, save_clip
from worker.models.batcher import Batcher
from worker.models.pool import LoadedModels

pytestmark = pytest.mark.gpu

ITEMS: list[tuple[Operation, Any]] = [(Operation.EMBED_TEXT, text) for text in TEXTS]
ITEMS += [(Operation.EMBED_IMAGE, photo(i, 200 + 30 * i, 240 - 10 * i)) for i in range(4)]


def vectors(model: Model) -> np.ndarray[Any, np.dtype[np.float32]]:
    found = []
    for operation, item in ITEMS:
        (raw,) = model.forward(operation, [model.prepare(operation, item)])
        found.append(model.finish(operation, raw))
    return np.stack(found)


def built_in(device: str, dtype: str = "float32") -> Model:
    spec = ModelSettings(source=ModelCatalog({}).spec(BUILT_IN).source, device=device, dtype=dtype)
    return ModelCatalog({"m": spec}).load("m", "cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "auto"])
def test_the_built_in_model_gives_the_processors_vectors(dtype: str) -> None:
    on_gpu = built_in("cuda", dtype)
    assert on_gpu.dtype != "auto"
    found = vectors(on_gpu)
    assert (vectors(built_in("cpu")) * found).sum(axis=1).min() >= LEAST_COSINE[dtype]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_batches_that_are_sent_ahead_give_the_vectors_of_single_ones(tmp_path: Path) -> None:
    """Hundreds of batches through the copying stream: one that were read before it arrived would differ."""
    catalog = ModelCatalog({"m": ModelSettings(source=str(save_clip(tmp_path / "clip")), device="cuda")})
    model = catalog.load("m", "cpu")
    assert isinstance(model, Overlapping)
    expected = vectors(model)
    batcher = Batcher(model, max_batch=2, max_wait_s=0.0)
    try:
        prepared = [(operation, model.prepare(operation, item)) for operation, item in ITEMS]
        futures: list[Future[Any]] = [
            batcher.submit(operation, item, Priority.NORMAL) for _ in range(100) for operation, item in prepared
        ]
        for i, future in enumerate(futures):
            np.testing.assert_allclose(future.result(60), expected[i % len(ITEMS)], atol=1e-4)
    finally:
        batcher.close()


def test_an_unloaded_model_leaves_the_gpus_memory(tmp_path: Path) -> None:
    catalog = ModelCatalog({"m": ModelSettings(source=str(save_clip(tmp_path / "clip")), device="cuda")})
    models = LoadedModels(Settings(), catalog)
    models.get("m")
    held = torch.cuda.memory_allocated()
    assert models.describe()[0]["size_bytes"] <= held
    assert models.unload("m")
    assert torch.cuda.memory_allocated() < held
    models.close()
