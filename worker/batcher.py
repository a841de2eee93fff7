"""One thread for each model that merges the items of concurrent jobs into batches.

Ideas from text-embeddings-inference and infinity: items wait at most ``max_wait_s``, interactive ones go first, and a
batch only holds items that may share a forward pass. An infinity batch thread died on one bad image and left every
later caller hanging; here a batch that fails is halved until the poison item is alone, and every future completes.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from revln.errors import ItemError, RevlnError, Unavailable
from revln.jobs.kinds import Priority
from revln.models.base import Model, Operation

__all__ = ["Batcher"]

log = logging.getLogger(__name__)

_LANES = tuple(Priority)  # interactive, normal, bulk


@dataclass(slots=True)
class _Waiting:
    operation: Operation
    prepared: Any
    key: Hashable
    future: Future[Any]
    since: float


class Batcher:
    """Runs a model's forward passes, one at a time, on batches that fill themselves."""

    def __init__(self, model: Model, *, max_batch: int = 0, max_wait_s: float = 0.004) -> None:
        """``max_batch`` of 0 takes the model's own limit for its device."""
        self._model = model
        self._max_wait_s = max_wait_s
        self._limits = {operation: max_batch or model.max_batch(operation) for operation in model.info.operations}
        self._lanes: dict[Priority, deque[_Waiting]] = {lane: deque() for lane in _LANES}
        self._changed = Condition()
        self._closed = False
        self.batches = 0
        self.items = 0
        self._thread = Thread(target=self._run, name=f"batcher-{model.info.name}", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, prepared: Any, priority: Priority, *, alone: bool = False) -> Future[Any]:
        """Queue one prepared item; the future holds the model's raw output, or the error of this one item.

        ``alone`` keeps it out of shared batches: what has crashed a process once shall not take others with it.
        """
        future: Future[Any] = Future()
        key: Hashable = object() if alone else (operation, self._model.merge_key(operation, prepared))
        with self._changed:
            if self._closed:
                future.set_exception(Unavailable("The worker is shutting down."))
                return future
            self._lanes[priority].append(_Waiting(operation, prepared, key, future, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stop after the batch in hand; whatever waits fails with `Unavailable`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def limit(self, operation: Operation) -> int:
        """The largest batch now; lower than at the start if memory ran out."""
        return self._limits[operation]

    def _run(self) -> None:
        while batch := self._next_batch():
            self.batches += 1
            self.items += len(batch)
            try:
                self._complete(batch)
            except BaseException as err:
                log.exception("the batcher of %s failed outside a forward pass", self._model.info.name)
                for waiting in batch:
                    _fail(waiting.future, err)
        with self._changed:
            for lane in self._lanes.values():
                while lane:
                    _fail(lane.popleft().future, Unavailable("The worker is shutting down."))

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a batch that is full or old enough; empty when closed."""
        with self._changed:
            while not self._closed:
                first = next((lane[0] for lane in self._lanes.values() if lane), None)
                if first is None:
                    self._changed.wait()
                    continue
                limit = self._limits[first.operation]
                ready = sum(1 for lane in self._lanes.values() for waiting in lane if waiting.key == first.key)
                age = time.monotonic() - first.since
                if ready < limit and age < self._max_wait_s:
                    self._changed.wait(self._max_wait_s - age)
                    continue
                return self._take(first.key, limit)
            return []

    def _take(self, key: Hashable, limit: int) -> list[_Waiting]:
        taken: list[_Waiting] = []
        for lane in self._lanes.values():
            left: deque[_Waiting] = deque()
            while lane:
                waiting = lane.popleft()
                if waiting.key == key and len(taken) < limit:
                    # A caller that gave up (a canceled job) has canceled its future: drop the work with it.
                    if waiting.future.set_running_or_notify_cancel():
                        taken.append(waiting)
                else:
                    left.append(waiting)
            lane.extend(left)
        # All of them were canceled: an empty batch would read as "closed".
        return taken or self._next_batch()

    def _complete(self, batch: Sequence[_Waiting]) -> None:
        operation = batch[0].operation
        try:
            outputs = self._model.forward(operation, [waiting.prepared for waiting in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"forward returned {len(outputs)} outputs for {len(batch)} items")
        except Exception as err:  # noqa: BLE001 - a batch ends here; the error goes to its items
            self._after_failure(batch, operation, err)
            return
        for waiting, output in zip(batch, outputs, strict=True):
            waiting.future.set_result(output)

    def _after_failure(self, batch: Sequence[_Waiting], operation: Operation, err: Exception) -> None:
        if _out_of_memory(err):
            _free_memory()
            if len(batch) > 1:
                self._limits[operation] = min(self._limits[operation], len(batch) // 2)
                log.warning("out of memory at %d items; batches of at most %d", len(batch), self._limits[operation])
        if len(batch) == 1:
            log.warning("%s failed on one item: %s: %s", operation, type(err).__name__, err)
            error = err if isinstance(err, RevlnError) else ItemError(f"The model failed on it: {_short(err)}")
            _fail(batch[0].future, error)
            return
        half = len(batch) // 2
        self._complete(batch[:half])
        self._complete(batch[half:])


def _fail(future: Future[Any], err: BaseException) -> None:
    try:
        future.set_exception(err)
    except InvalidStateError:
        return


def _out_of_memory(err: Exception) -> bool:
    return isinstance(err, MemoryError) or "out of memory" in str(err).lower()


def _free_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err)[:200]}"
