"""A stand-in for models where a test is of what jobs do with them: it loads in no time and means what it says."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from revln.errors import NotFound
from revln.models.base import ModelInfo, Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings

__all__ = ["WordCatalog", "WordModel"]


class WordModel:
    """A bag of words, each in a direction of its own that hangs on the model's name; pictures by their colours."""

    device = "cpu"
    dtype = "float32"

    def __init__(self, name: str, dim: int) -> None:
        both = (Operation.EMBED_TEXT, Operation.EMBED_IMAGE)
        self.info = ModelInfo(name, "fake", both, dim, f"{name}-{dim}", 16, match_min_score={"text": 0.5, "image": 0.9})

    def prepare(self, operation: Operation, item: Any) -> Any:
        return item if operation is Operation.EMBED_TEXT else np.asarray(item.resize((4, 4), Image.Resampling.BOX))

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:
        return operation

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        return [self._text(one) if operation is Operation.EMBED_TEXT else self._image(one) for one in batch]

    def finish(self, operation: Operation, raw: Any) -> Any:
        return np.asarray(raw / np.linalg.norm(raw), dtype=np.float32)

    def max_batch(self, operation: Operation) -> int:
        return 32

    def _direction(self, word: str) -> Any:
        assert self.info.dim is not None
        return np.random.default_rng(zlib.crc32(f"{self.info.name} {word}".encode())).standard_normal(self.info.dim)

    def _text(self, text: str) -> Any:
        return np.sum([self._direction(word) for word in text.lower().split()], axis=0)

    def _image(self, pixels: Any) -> Any:
        weights = pixels.reshape(-1).astype(float) + 1
        return np.sum([weight * self._direction(f"pixel {at}") for at, weight in enumerate(weights)], axis=0)


class WordCatalog(ModelCatalog):
    """Word models by name, their dimensions given, in the place of those that an operator named."""

    def __init__(self, **dims: int) -> None:
        super().__init__({name: ModelSettings(source=name) for name in dims}, next(iter(dims)))
        self.names = sorted(dims)
        self._models = {name: WordModel(name, dim) for name, dim in dims.items()}

    def describe(self, name: str) -> ModelInfo:
        return self.load(name, "cpu").info

    def fetch(self, name: str) -> ModelInfo:
        return self.describe(name)

    def load(self, name: str, device: str) -> WordModel:
        if name not in self._models:
            raise NotFound(f"There is no model {name!r}; there are {', '.join(self.names)}.")
        return self._models[name]
