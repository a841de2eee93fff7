"""The models of this process: one shared instance of each, loaded on first use, kept while there is room for it.

A model is loaded by a thread of its own, whoever asks first; the others wait for it, and no other model waits at all.
When the weights on a device would outgrow its budget, the model that was used longest ago is unloaded, but never one
that a running chunk holds: for that the new one waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from threading import Condition, Lock, Thread
from typing import Any

from revln.errors import Conflict, ModelUnavailable, RevlnError, Unavailable
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from worker.models.loading import LoadedModel, Loader, release_memory
from worker.models.slots import Slot, slot_row, victims

__all__ = ["LoadedModels"]

log = logging.getLogger(__name__)

_LOOK_S = 0.5  # how soon somebody who waits notices that he should stop
_ROOM_S = 60.0  # how long a new model waits for those that running chunks hold
# A failed load is not tried again for each of a thousand waiting jobs.
_RETRY_S = 10.0


class LoadedModels:
    """Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        catalog: ModelCatalog,
        loader: Loader | None = None,
        *,
        retry_s: float = _RETRY_S,
        room_s: float = _ROOM_S,
    ) -> None:
        self._catalog = catalog
        self._loader = loader or Loader(settings, catalog)
        self._retry_s = retry_s
        self._room_s = room_s
        self._slots: dict[str, Slot] = {}
        self._proven: set[str] = set()
        self._orders: dict[str, int] = {}  # the last one carried out for each model
        self._changed = Condition()
        self._turns: dict[str, Lock] = {}  # on each device one model at a time makes room
        self._chunk = threading.local()  # what this thread's chunk holds, and what it does while it waits
        self.device = self._loader.device

    @contextmanager
    def held(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """What this thread gets inside the block stays loaded until its end.

        ``waiting`` is called about twice a second while a model is loaded, and may raise.
        """
        self._chunk.slots, self._chunk.waiting = [], waiting
        try:
            yield
        finally:
            with self._changed:
                for slot in self._chunk.slots:
                    slot.holders -= 1
                    slot.used_at = time.monotonic()
                self._changed.notify_all()
            del self._chunk.slots, self._chunk.waiting

    def get(self, name: str, fingerprint: str | None = None) -> LoadedModel:
        """The loaded model. ``fingerprint`` is the whole one or that of the joint space.

        Raises:
            NotFound: no such model.
            ModelUnavailable: it cannot be loaded, or the files here are not those that the job was accepted for.
            Unavailable: there is no room for it now.
        """
        self._catalog.spec(name)
        slot = self._take(name)
        future = slot.future
        while not wait_for([future], timeout=_LOOK_S).done:
            self._wait()
        found = future.result()
        info = found.model.info
        if fingerprint not in (None, info.fingerprint, info.joint_fingerprint):
            raise ModelUnavailable(
                f"The job was accepted for model {name} {fingerprint}, but this worker has {info.fingerprint} (joint "
                f"space {info.joint_fingerprint}). "
                "Give the API and every worker the same model files."
            )
        return found

    def prove(self, name: str) -> None:
        """Make sure that it can be loaded; one that was loaded once is not loaded again for that. Raises as `get`."""
        if name not in self._proven:
            self.get(name)

    def load(self, name: str) -> None:
        """Load it now, also if that failed a moment ago. Raises as `get`."""
        with self._changed:
            slot = self._slots.get(name)
            if slot is not None and slot.failed_at is not None:
                del self._slots[name]
        self.get(name)

    def unload(self, name: str, wait_s: float = _ROOM_S) -> bool:
        """Let go of it as soon as no chunk holds it; whether it was loaded.

        Raises:
            Conflict: running chunks still hold it after ``wait_s``.
        """
        end = time.monotonic() + wait_s
        with self._changed:
            slot = self._slots.get(name)
            if slot is None or slot.failed_at is not None:
                self._slots.pop(name, None)
                return False
            while True:
                slot.leaving = True  # again: whoever wanted its room may have given up
                if slot.future.done() and not slot.holders:
                    break
                if time.monotonic() >= end:
                    slot.leaving = False
                    self._changed.notify_all()
                    raise Conflict(f"Model {name} is in use by {slot.holders} chunks; try again when they have ended.")
                self._changed.wait(_LOOK_S)
            if self._slots.get(name) is slot:
                del self._slots[name]
            self._changed.notify_all()
        self._let_go([slot])
        return slot.failed_at is None

    def describe(self) -> list[dict[str, Any]]:
        """The models of this process, for the worker's row."""
        with self._changed:
            rows = {name: {"name": name, "state": "unloaded"} for name in self._orders}
            rows |= {name: slot_row(slot) for name, slot in self._slots.items()}
            return [{**row, "order": self._orders.get(name, 0)} for name, row in rows.items()]

    def note_order(self, name: str, number: int) -> None:
        """Show in `describe` that an operator's order was carried out, well or badly."""
        with self._changed:
            self._orders[name] = number

    def close(self) -> None:
        with self._changed:
            slots = [slot for slot in self._slots.values() if slot.loaded]
        for slot in slots:
            slot.future.result().batcher.close()

    def _wait(self) -> None:
        getattr(self._chunk, "waiting", lambda: None)()

    def _take(self, name: str) -> Slot:
        """The model's slot, held by this thread's chunk; a new one starts its load."""
        mine: list[Slot] | None = getattr(self._chunk, "slots", None)
        with self._changed:
            slot = self._slots.get(name)
            while slot is not None and slot.leaving and slot not in (mine or ()):
                self._changed.wait(_LOOK_S)
                self._wait()
                slot = self._slots.get(name)
            if slot is not None and slot.failed_at is not None and time.monotonic() > slot.failed_at + self._retry_s:
                slot = None
            if slot is None:
                slot = self._slots[name] = Slot(name)
                Thread(target=self._fill, args=(slot,), name=f"load-{name}", daemon=True).start()
            if mine is not None and slot not in mine:
                mine.append(slot)
                slot.holders += 1
            slot.used_at = time.monotonic()
            return slot

    def _fill(self, slot: Slot) -> None:
        try:
            device, size_bytes = self._loader.measure(slot.name)
            self._make_room(slot, device, size_bytes)
            loaded = self._loader.load(slot.name)
        except BaseException as err:
            known = isinstance(err, RevlnError)
            log.warning("model %s could not be loaded: %s", slot.name, err, exc_info=None if known else err)
            error = err if known else Unavailable(f"Model {slot.name} could not be loaded: {type(err).__name__}.")
            with self._changed:
                slot.failed_at, slot.size_bytes = time.monotonic(), 0
                slot.future.set_exception(error)
                self._changed.notify_all()
            return
        with self._changed:
            self._proven.add(slot.name)
            slot.future.set_result(loaded)
            self._changed.notify_all()

    def _make_room(self, slot: Slot, device: str, size_bytes: int) -> None:
        """Reserve room for a model, and unload others for it. Raises ModelUnavailable, Unavailable."""
        budget = self._loader.budget(device)
        if size_bytes > budget:
            raise ModelUnavailable(
                f"Model {slot.name} has {size_bytes:,} bytes of weights; one worker may hold {budget:,} on {device}. "
                "Raise REVLN_MODEL_MEMORY_BYTES, or give it a smaller dtype or another device."
            )
        with self._changed:
            turn = self._turns.setdefault(device, Lock())
        with turn:
            self._make_room_now(slot, device, size_bytes, budget)

    def _make_room_now(self, slot: Slot, device: str, size_bytes: int, budget: int) -> None:
        """In its turn: a model that was just unloaded for this one would else take the room again."""
        end = time.monotonic() + self._room_s
        asked: set[Slot] = set()
        try:
            while True:
                with self._changed:
                    idle, held = victims(self._slots.values(), slot, device, size_bytes - budget)
                    if not idle and not held:
                        slot.device, slot.size_bytes = device, size_bytes
                        return
                    for victim in idle:
                        del self._slots[victim.name]
                    for victim in held:
                        victim.leaving = True
                    asked.update(held)
                    self._changed.notify_all()
                    if not idle and not self._changed.wait(_LOOK_S) and time.monotonic() > end:
                        raise Unavailable(
                            f"There is no room for model {slot.name} on {device}: running chunks hold the others. "
                            "Raise REVLN_MODEL_MEMORY_BYTES, or serve it by a worker of its own."
                        )
                self._let_go(idle)
        finally:
            with self._changed:
                for victim in asked:
                    victim.leaving = False
                self._changed.notify_all()

    def _let_go(self, slots: list[Slot]) -> None:
        for slot in slots:
            if slot.loaded:
                slot.future.result().batcher.close()
                slot.future = Future()  # the last reference of ours to the weights
                log.info("model %s is unloaded", slot.name)
        if slots:
            release_memory()
