"""A model's place in a worker: whether it is loading, loaded or failed, who holds it, how large it is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from revln.errors import RevlnError
from worker.models.loading import LoadedModel

__all__ = ["Slot", "slot_row", "victims"]


@dataclass(slots=True, eq=False)
class Slot:
    """One model's place: being loaded, loaded, or failed."""

    name: str
    future: Future[LoadedModel] = field(default_factory=Future)
    device: str = ""
    size_bytes: int = 0
    holders: int = 0  # running chunks that use it
    used_at: float = 0.0
    leaving: bool = False  # new chunks wait until it is gone
    failed_at: float | None = None

    @property
    def loaded(self) -> bool:
        return self.future.done() and self.failed_at is None

    @property
    def idle(self) -> bool:
        return self.loaded and not self.holders


def victims(slots: Iterable[Slot], slot: Slot, device: str, over: int) -> tuple[list[Slot], list[Slot]]:
    """Which models have to go for ``slot``: those that can at once, and those that chunks still hold or that load.

    ``over``: the bytes by which it would outgrow the budget if it were alone there (negative: what that would leave).
    """
    others = [each for each in slots if each.device == device and each is not slot]
    over += sum(each.size_bytes for each in others)
    idle: list[Slot] = []
    held: list[Slot] = []
    for each in sorted(others, key=lambda each: (not each.idle, each.used_at)):
        if over <= 0:
            break
        (idle if each.idle else held).append(each)
        over -= each.size_bytes
    return idle, held


def slot_row(slot: Slot) -> dict[str, Any]:
    row: dict[str, Any] = {"name": slot.name}
    if slot.failed_at is not None:
        error = slot.future.exception()
        assert isinstance(error, RevlnError)
        return {**row, "state": "failed", "error": error.as_dict()}
    if not slot.future.done():
        return {**row, "state": "loading"}
    loaded = slot.future.result()
    model, batcher = loaded.model, loaded.batcher
    return {
        **row,
        "state": "unloading" if slot.leaving else "loaded",
        "fingerprint": model.info.fingerprint,
        "device": model.device,
        "dtype": model.dtype,
        "batch": {operation.value: batcher.limit(operation) for operation in model.info.operations},
        "size_bytes": slot.size_bytes,
        "chunks": slot.holders,
        "batches": batcher.batches,
        "items": batcher.items,
    }
