"""A stand-in for models where a test is of what jobs do with them: it loads in no time and means what it says."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from revln.errors import NotFound
from revln.models.base import Caption, CaptionRequest, ModelInfo, Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings

__all__ = ["ColourModel", "WordCatalog", "WordModel"]


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


class ColourModel(WordModel):
    """Knows pictures of one colour by the colour's word, and captions one with its first evidence, else so."""

    def __init__(self, *colours: str) -> None:
        super().__init__("colours", 256)
        self.info = replace(self.info, operations=tuple(Operation))
        self._words = {ImageColor.getrgb(colour): colour for colour in colours}
        self.asked: list[CaptionRequest] = []

    def prepare(self, operation: Operation, item: Any) -> Any:
        if operation is Operation.CAPTION:
            self.asked.append(item)
            return item.evidence[0].text if item.evidence else f"a {self._word(item.image)} picture"
        return item.replace(".", " ") if operation is Operation.EMBED_TEXT else self._word(item)

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        return list(batch) if operation is Operation.CAPTION else [self._text(one) for one in batch]

    def finish(self, operation: Operation, raw: Any) -> Any:
        return (Caption(raw, 0.0),) if operation is Operation.CAPTION else super().finish(operation, raw)

    def _word(self, image: Image.Image) -> str:
        return self._words[image.getpixel((0, 0))]  # type: ignore[index]


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
