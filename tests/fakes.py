"""The one stand-in of the tests: a model whose failures can be ordered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from revln.models.base import ModelInfo, Operation

__all__ = ["OrderedModel"]


class OrderedModel:
    """Doubles numbers; records its batches; fails on what it is told to fail on."""

    device = "cpu"
    dtype = "float32"

    def __init__(self, limit: int = 8, fails: Callable[[Sequence[Any]], Exception | None] = lambda _: None) -> None:
        self.info = ModelInfo("ordered", "fake", (Operation.EMBED_TEXT, Operation.EMBED_IMAGE), 1, "fake-1", 8)
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._limit = limit
        self._fails = fails

    def prepare(self, operation: Operation, item: Any) -> Any:
        return item

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:
        return prepared >= 1000  # large numbers and small ones do not mix

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        self.gate.wait(30)
        self.batches.append(list(batch))
        if (error := self._fails(batch)) is not None:
            raise error
        return [2 * number for number in batch]

    def finish(self, operation: Operation, raw: Any) -> Any:
        return raw

    def max_batch(self, operation: Operation) -> int:
        return self._limit
