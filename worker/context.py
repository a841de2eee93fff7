"""What a handler is given: its chunk's items that are still to be done, and the worker's parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from sqlalchemy import Connection

from revln.db.jobs.chunks import Claim
from revln.db.jobs.splitting import split_chunk
from revln.db.jobs.submit import Inline, NewChunk, Range
from revln.errors import ItemError, ItemInvalid, ItemNotFound, JobError, OutOfMemory, RevlnError, Unavailable
from revln.jobs.kinds import KINDS, Priority
from revln.jobs.schemas import Item, Operation, Parameters
from revln.models.memory import out_of_memory
from worker.leases import Lease
from worker.runtime import Runtime

__all__ = ["Again", "Context", "Done", "Handler", "Outcome", "Todo", "parse_items"]

log = logging.getLogger(__name__)

_CHECK_S = 0.5  # how soon a waiting handler notices that it should stop


@dataclass(frozen=True, slots=True)
class Todo:
    """One item to be done: its place in the job, and what the user sent (or a manifest's line)."""

    index: int
    raw: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: the fields of its result, or an error; ``vector`` is (D,) float32."""

    index: int
    id: str | None = None
    fields: dict[str, Any] | None = None
    vector: NDArray[np.float32] | None = None
    error: ItemError | None = None

    def as_dict(self) -> dict[str, Any]:
        head: dict[str, Any] = {"index": self.index, "id": self.id}
        return {**head, "error": self.error.as_dict()} if self.error else {**head, **(self.fields or {})}


class Again(Exception):
    """Raised by `Done.apply`: more has come meanwhile than can be written at once. The handler is run again."""


class Handler(Protocol):
    """The work of a kind, or of one of its operations, on one chunk."""

    def __call__(self, context: Context[Any]) -> Done: ...


@dataclass(frozen=True, slots=True)
class Done:
    """What a handler hands in: an outcome for each item of ``todo``, and writes for the final transaction, if any.

    ``apply`` gets the outcomes and returns them as they really came out (with the log's ``seq``, say).
    Of an operation that is open-ended the outcomes are a list of their own length, a report.
    """

    outcomes: list[Outcome]
    apply: Callable[[Connection, list[Outcome]], list[Outcome]] | None = None


_Parameters = TypeVar("_Parameters", bound=Parameters)


class Context(Generic[_Parameters]):
    """One chunk being run, with the parameters of its job."""

    def __init__(self, runtime: Runtime, lease: Lease) -> None:
        self.runtime = runtime
        self.lease = lease
        self.claim: Claim = lease.claim
        self.job = lease.claim.job
        self.operation = KINDS[self.job.kind].operation(self.job.input)
        self.parameters = cast(_Parameters, _read_parameters(self.operation, self.job.input))
        self.priority = Priority(self.job.priority)
        self.alone = self.claim.crash_count > 0  # it may be what killed the last worker: it shares no batch
        done = {item["index"] for item in self.claim.standing}
        self.todo = [todo for todo, _ in self._items() if todo.index not in done]

    def _items(self) -> Iterator[tuple[Todo, Inline | Range]]:
        """Each item of the chunk, and where it is if it is alone in one."""
        first, source = self.claim.first_index, self.claim.source
        if isinstance(source, Inline):
            yield from ((Todo(index, raw), Inline([raw])) for index, raw in enumerate(source.items, first))
            return
        offset, index = source.offset, first
        for line in self._manifest(source).split(b"\n"):
            if line.strip():
                yield Todo(index, line), Range(offset, len(line))
                index += 1
            offset += len(line) + 1

    def _manifest(self, lines: Range) -> bytes:
        """The chunk's lines. Raises ItemNotFound, Unavailable."""
        manifest = self.parameters.manifest_sha256
        assert manifest is not None
        if not self.runtime.uploads.of(self.job.tenant, "manifest", [manifest]):
            raise ItemNotFound(f"There is no manifest {manifest}. POST /v1/manifests uploads one.")
        return self.runtime.blobs.read_range(manifest, "manifests", lines.offset, lines.length)

    def split(self) -> bool:
        """Cut the chunk into single items if its next crash would bury all of it; whether that was done.

        It ran alone when it crashed last, so one of its items is to blame.
        """
        claim, most = self.claim, self.runtime.settings.max_crashes
        if claim.n_items < 2 or claim.crash_count < max(1, most - 1):
            return False
        self.lease.check()
        split_chunk(self.runtime.db, claim, [NewChunk(todo.index, 1, source) for todo, source in self._items()])
        return True

    def watched(self, what: str) -> AbstractContextManager[None]:
        """Around work of this chunk in a thread of its own that might hang."""
        return self.runtime.watchdog.forward(what, [self.lease])

    def gather(self, futures: Iterable[Any], *, shared: bool = False) -> list[Any]:
        """Wait for each future, noticing cancellation and deadlines; an item's error, or what is no future, stays.

        Raises what `Lease.check` raises; the futures that are left are canceled then, unless others wait for them too.
        """
        waiting = list(futures)
        gathered: list[Any] = []
        try:
            for future in waiting:
                gathered.append(self._wait(future) if isinstance(future, Future) else future)
                self.lease.progress()
        except BaseException:
            for future in waiting:
                if isinstance(future, Future) and not shared:
                    future.cancel()
            raise
        return gathered

    def _wait(self, future: Future[Any]) -> Any:
        while True:
            self.lease.check()
            try:
                return future.result(timeout=_CHECK_S)
            except ItemError as err:
                return err
            except RevlnError:
                raise  # not this item's fault: the whole chunk is tried again
            except CancelledError as err:
                raise Unavailable("The worker is shutting down.") from err
            except TimeoutError:
                if future.done():
                    return ItemError("It took too long.")
            except Exception as err:
                if out_of_memory(err):
                    return OutOfMemory()
                # A fault of ours that one item brings out must not take its neighbours with it.
                log.exception("an item of chunk %s.%d failed unexpectedly", *self.claim.key)
                return ItemError(f"Something went wrong inside revln ({type(err).__name__}); the log has more.")


def _read_parameters(operation: Operation, given: dict[str, Any]) -> Parameters:
    try:
        return operation.parameters.model_validate(given)
    except ValidationError as err:
        raise JobError(f"This worker cannot read the job's parameters: {_first(err)}") from err


_Schema = TypeVar("_Schema", bound=Item)


def parse_items(todo: Iterable[Todo], schema: type[_Schema]) -> list[tuple[Todo, _Schema | ItemInvalid]]:
    """Each item in its schema. The API has checked inline items; a manifest's lines are checked here, one by one."""
    return [(one, _parse(one.raw, schema)) for one in todo]


def _parse(raw: Any, schema: type[_Schema]) -> _Schema | ItemInvalid:
    try:
        return schema.model_validate(json.loads(raw) if isinstance(raw, bytes) else raw)
    except ValidationError as err:
        return ItemInvalid(_first(err))
    except (ValueError, RecursionError):
        return ItemInvalid("This line of the manifest is not JSON in UTF-8.")


def _first(err: ValidationError) -> str:
    first = err.errors()[0]
    where = "/".join(str(part) for part in first["loc"]) or "item"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
