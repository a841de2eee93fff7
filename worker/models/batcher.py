"""One thread for each model that merges the items of concurrent jobs into batches.

Ideas from text-embeddings-inference and infinity: items wait at most ``max_wait_s``, interactive ones go first (others
once they have waited some seconds longer), and a batch only holds items that may share a forward pass. On a GPU the
next batch, if it is full already, is put together and sent there while the one before still runs (`Overlapping`); one
that is not full goes on filling itself.

An infinity batch thread died on one bad image and left every later caller hanging; here a batch that fails is halved
until the poison item is alone, and every future completes.
"""

from __future__ import annotations

import heapq
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from revln.errors import ItemError, OutOfMemory, RevlnError, Unavailable
from revln.jobs.kinds import Priority
from revln.models.base import Model, Operation, Overlapping
from revln.models.memory import give_back_freed_memory, out_of_memory
from worker.health.watchdog import Waiting

__all__ = ["Batcher"]

log = logging.getLogger(__name__)

# What watches a forward pass: what it is, who waits for it, who stands in line behind it.
Watch = Callable[[str, Sequence[Waiting], Callable[[], Iterable[Waiting]]], AbstractContextManager[None]]

_LANES = tuple(Priority)  # interactive, normal, bulk
# How much longer an item of a lane waits than an interactive one before it goes first: so no lane starves another.
_PATIENCE_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 1.0, Priority.BULK: 5.0}


@dataclass(slots=True)
class _Waiting:
    operation: Operation
    prepared: Any
    key: Hashable
    future: Future[Any]
    since: float
    urgent_at: float
    owner: Waiting | None


class _Ahead:
    """The next batch, being put together while one runs."""

    def __init__(self, changed: Condition) -> None:
        self._changed = changed
        self.over = False  # the running one has ended: wait no longer
        self.result: Future[tuple[list[_Waiting], Any]] = Future()

    def take(self) -> tuple[list[_Waiting], Any]:
        with self._changed:
            self.over = True
            self._changed.notify_all()
        return self.result.result()


class Batcher:
    """Runs a model's forward passes, one at a time, on batches that fill themselves."""

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int = 0,
        max_wait_s: float = 0.004,
        overlap: bool | None = None,
        watch: Watch = lambda *_: nullcontext(),
    ) -> None:
        """``max_batch`` of 0 takes the model's own limit for its device; ``overlap`` of None is: on a GPU."""
        self._model = model
        self._watch = watch
        if overlap is None:
            overlap = model.device != "cpu"  # there, preparing and computing would share the same cores
        self._overlapping = model if overlap and isinstance(model, Overlapping) else None
        self._collator = ThreadPoolExecutor(1, f"collate-{model.info.name}") if self._overlapping else None
        self._max_wait_s = max_wait_s
        self._limits = {operation: max_batch or model.max_batch(operation) for operation in model.info.operations}
        self._lanes: dict[Priority, deque[_Waiting]] = {lane: deque() for lane in _LANES}
        self._changed = Condition()
        self._closed = False
        self.batches = 0
        self.items = 0
        self._thread = Thread(target=self._run, name=f"batcher-{model.info.name}", daemon=True)
        self._thread.start()

    def submit(
        self,
        operation: Operation,
        prepared: Any,
        priority: Priority,
        *,
        alone: bool = False,
        owner: Waiting | None = None,
    ) -> Future[Any]:
        """Queue one prepared item; the future holds the model's raw output, or the error of this one item.

        ``alone`` keeps it out of shared batches: what has crashed a process once shall not take others with it.
        ``owner`` is the lease for which it is done.
        """
        future: Future[Any] = Future()
        key: Hashable = object() if alone else (operation, self._model.merge_key(operation, prepared))
        with self._changed:
            if self._closed:
                future.set_exception(Unavailable("The worker is shutting down."))
                return future
            now = time.monotonic()
            waiting = _Waiting(operation, prepared, key, future, now, now + _PATIENCE_S[priority], owner)
            self._lanes[priority].append(waiting)
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Stop after the batch in hand; whatever waits fails with `Unavailable`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def limit(self, operation: Operation) -> int:
        """The largest batch now; lower than at the start if memory ran out."""
        return self._limits[operation]

    def _run(self) -> None:
        ahead: _Ahead | None = None
        while True:
            batch, collated = ahead.take() if ahead is not None else ([], None)
            batch = batch or self._next_batch()
            if not batch:
                break
            ahead = self._look_ahead()
            self.batches += 1
            self.items += len(batch)
            try:
                self._complete(batch, collated)
            except BaseException as err:
                log.exception("the batcher of %s failed outside a forward pass", self._model.info.name)
                for waiting in batch:
                    _fail(waiting.future, err)
        if self._collator is not None:
            self._collator.shutdown()
        with self._changed:
            for lane in self._lanes.values():
                while lane:
                    _fail(lane.popleft().future, Unavailable("The worker is shutting down."))

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a batch that is full or old enough; empty when closed."""
        with self._changed:
            while not self._closed:
                first = self._most_urgent()
                if first is None:
                    self._changed.wait()
                    continue
                limit = self._limits[first.operation]
                age = time.monotonic() - first.since
                if self._ready(first.key) < limit and age < self._max_wait_s:
                    self._changed.wait(self._max_wait_s - age)
                    continue
                if taken := self._take(first.key, limit):
                    return taken
            return []

    def _take(self, key: Hashable, limit: int) -> list[_Waiting]:
        """The most urgent that may share a batch; empty if all of them were canceled."""
        lanes = ([waiting for waiting in lane if waiting.key == key] for lane in self._lanes.values())
        taken: list[_Waiting] = []
        gone: set[int] = set()
        for waiting in heapq.merge(*lanes, key=lambda waiting: waiting.urgent_at):
            if len(taken) == limit:
                break
            gone.add(id(waiting))
            # A caller that gave up (a canceled job) has canceled its future: drop the work with it.
            if waiting.future.set_running_or_notify_cancel():
                taken.append(waiting)
        for priority, lane in self._lanes.items():
            self._lanes[priority] = deque(waiting for waiting in lane if id(waiting) not in gone)
        return taken

    def _most_urgent(self) -> _Waiting | None:
        return min((lane[0] for lane in self._lanes.values() if lane), key=lambda head: head.urgent_at, default=None)

    def _look_ahead(self) -> _Ahead | None:
        if self._overlapping is None or self._collator is None:
            return None
        ahead = _Ahead(self._changed)
        ahead.result = self._collator.submit(self._collate_next, self._overlapping, ahead)
        return ahead

    def _collate_next(self, model: Overlapping, ahead: _Ahead) -> tuple[list[_Waiting], Any]:
        """The next batch, put together, if it is full before the running one ends; it keeps the lanes' order."""
        batch: list[_Waiting] = []
        with self._changed:
            while not batch and not self._closed and not ahead.over:
                first = self._most_urgent()
                if first is not None and self._ready(first.key) >= self._limits[first.operation]:
                    batch = self._take(first.key, self._limits[first.operation])
                else:
                    self._changed.wait()
        if not batch:
            return [], None
        try:
            with self._watched(batch):
                return batch, model.collate(batch[0].operation, [waiting.prepared for waiting in batch])
        except Exception:  # noqa: BLE001 - the forward pass will meet it again, and find out whose fault it is
            return batch, None

    def _watched(self, batch: Sequence[_Waiting]) -> AbstractContextManager[None]:
        what = f"{batch[0].operation} of {len(batch)} items by {self._model.info.name}"
        return self._watch(what, _owners(batch), self._in_line)

    def _in_line(self) -> list[Waiting]:
        with self._changed:
            return _owners(waiting for lane in self._lanes.values() for waiting in lane)

    def _ready(self, key: Hashable) -> int:
        return sum(1 for lane in self._lanes.values() for waiting in lane if waiting.key == key)

    def _complete(self, batch: Sequence[_Waiting], collated: Any = None) -> None:
        operation = batch[0].operation
        try:
            with self._watched(batch):
                if collated is not None and self._overlapping is not None:
                    outputs = self._overlapping.forward_collated(operation, collated)
                else:
                    outputs = self._model.forward(operation, [waiting.prepared for waiting in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"forward returned {len(outputs)} outputs for {len(batch)} items")
        except Exception as err:  # noqa: BLE001 - a batch ends here; the error goes to its items
            self._after_failure(batch, operation, err)
            return
        for waiting, output in zip(batch, outputs, strict=True):
            waiting.future.set_result(output)

    def _after_failure(self, batch: Sequence[_Waiting], operation: Operation, err: Exception) -> None:
        if out_of_memory(err):
            _free_memory()
            if len(batch) > 1:
                self._limits[operation] = min(self._limits[operation], len(batch) // 2)
                log.warning("out of memory at %d items; batches of at most %d", len(batch), self._limits[operation])
        if len(batch) == 1:
            log.warning("%s failed on one item: %s: %s", operation, type(err).__name__, err)
            error = _known(err)
            _fail(batch[0].future, error)
            return
        half = len(batch) // 2
        self._complete(batch[:half])
        self._complete(batch[half:])


def _owners(batch: Iterable[_Waiting]) -> list[Waiting]:
    return list({waiting.owner for waiting in batch if waiting.owner is not None})


def _fail(future: Future[Any], err: BaseException) -> None:
    try:
        future.set_exception(err)
    except InvalidStateError:
        return


def _known(err: Exception) -> RevlnError:
    if out_of_memory(err):
        return OutOfMemory()
    return err if isinstance(err, RevlnError) else ItemError(f"The model failed on it: {_short(err)}")


def _free_memory() -> None:
    give_back_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err)[:200]}"
