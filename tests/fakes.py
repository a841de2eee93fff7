"""The stand-ins of the tests: a model whose failures can be ordered, a loader of such models, a large collection."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from revln.models.base import ModelInfo, Operation
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from worker.models.batcher import Batcher
from worker.models.loading import LoadedModel, Loader

__all__ = ["ManyItems", "OrderedLoader", "OrderedModel", "OverlappingModel"]


class OrderedModel:
    """Doubles numbers; records its batches; fails on what it is told to fail on."""

    device = "cpu"
    dtype = "float32"

    def __init__(
        self,
        limit: int = 8,
        fails: Callable[[Sequence[Any]], Exception | None] = lambda _: None,
        name: str = "ordered",
    ) -> None:
        self.info = ModelInfo(name, "fake", (Operation.EMBED_TEXT, Operation.EMBED_IMAGE), 1, "fake-1", 8)
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


class OverlappingModel(OrderedModel):
    """Puts batches together apart from running them; records what ran while a forward pass was held at its gate."""

    def __init__(
        self, limit: int = 4, refuses: Callable[[Sequence[Any]], bool] = lambda _: False, **options: Any
    ) -> None:
        super().__init__(limit, **options)
        self.collated: list[list[Any]] = []
        self._refuses = refuses

    def collate(self, operation: Operation, batch: Sequence[Any]) -> Any:
        if self._refuses(batch):
            raise ValueError("cannot be put together")
        self.collated.append(list(batch))
        return list(batch)

    def forward_collated(self, operation: Operation, collated: Any) -> Sequence[Any]:
        return super().forward(operation, collated)

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        return self.forward_collated(operation, self.collate(operation, batch))


class OrderedLoader(Loader):
    """Each model weighs 1 of ``room``; loads wait for their gate and fail as they are told to."""

    def __init__(self, room: int = 2) -> None:
        super().__init__(Settings(device="cpu"), ModelCatalog({}))
        self.room = room
        self.loads: list[str] = []
        self.models: dict[str, OrderedModel] = {}
        self.gates: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}

    def measure(self, name: str) -> tuple[str, int]:
        return "cpu", 5 if name == "huge" else 1

    def budget(self, device: str) -> int:
        return self.room

    def load(self, name: str) -> LoadedModel:
        self.loads.append(name)
        if name in self.gates:
            assert self.gates[name].wait(30)
        if name in self.fails:
            raise self.fails[name]
        model = self.models[name] = OrderedModel(name=name)
        return LoadedModel(model, Batcher(model, max_wait_s=0.0))


class ManyItems:
    """What the API answers for a collection of 20,000 items, made page by page: 20 MB of vectors, 160 MB of texts."""

    COUNT, _PAGE, _DIM = 20_000, 200, 256

    def collection(self, name: str) -> dict[str, Any]:
        return {"name": name, "model": None, "model_fingerprint": "f", "dim": self._DIM, "metadata": {}}

    def item_pages(self, name: str, **_: Any) -> Iterator[list[dict[str, Any]]]:
        for page in range(self.COUNT // self._PAGE):
            vector = base64.b64encode(np.full(self._DIM, page, np.float32)).decode()
            yield [
                {
                    "id": f"{page:03}-{n:03}", "text": f"{name} {page} {n} " * 600, "image": None, "metadata": {"n": n},
                    "vector_b64": vector,
                }
                for n in range(self._PAGE)
            ]  # fmt: skip
