"""The models of a worker: loaded once, kept while there is room, never taken from under a running chunk."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from revln.errors import Conflict, JobCanceled, ModelUnavailable, NotFound, RevlnError, Unavailable
from revln.jobs.kinds import Priority
from revln.models.base import Operation
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings, Settings
from tests.fakes import OrderedLoader
from tests.stack import wait_until
from tests.tiny_models import save_clip
from worker.models.loading import LoadedModel
from worker.models.pool import LoadedModels

NAMES = ("a", "b", "c", "huge")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def models_of(stack: ExitStack, loader: OrderedLoader, **options: Any) -> LoadedModels:
    catalog = ModelCatalog({name: ModelSettings(source=f"/nowhere/{name}") for name in NAMES})
    models = LoadedModels(Settings(device="cpu"), catalog, loader, **options)
    stack.callback(models.close)
    return models


def double(loaded: LoadedModel, number: int) -> Any:
    return loaded.batcher.submit(Operation.EMBED_TEXT, number, Priority.NORMAL).result(10)


def states(models: LoadedModels) -> dict[str, str]:
    return {row["name"]: row["state"] for row in models.describe()}


class Chunk:
    """A running chunk in a thread of its own: it gets a model and holds it until it is told to end."""

    def __init__(self, models: LoadedModels, pool: ThreadPoolExecutor, name: str, *, again: bool = False) -> None:
        self.got, self.end = threading.Event(), threading.Event()
        self._models, self._name, self._again = models, name, again
        self.future: Future[Any] = pool.submit(self._run)

    def _run(self) -> Any:
        with self._models.held():
            loaded = self._models.get(self._name)
            self.got.set()
            assert self.end.wait(30)
            return double(self._models.get(self._name) if self._again else loaded, 21)


def test_many_threads_that_ask_for_one_model_load_it_once(stack: ExitStack, pool: ThreadPoolExecutor) -> None:
    loader = OrderedLoader()
    loader.gates["a"] = threading.Event()
    models = models_of(stack, loader)
    asked = [pool.submit(models.get, "a") for _ in range(8)]
    wait_until(lambda: loader.loads, what="the load")
    assert states(models) == {"a": "loading"}
    loader.gates["a"].set()
    assert len({id(one.result(10)) for one in asked}) == 1
    assert loader.loads == ["a"]


def test_a_model_being_loaded_keeps_no_other_one_waiting(stack: ExitStack, pool: ThreadPoolExecutor) -> None:
    loader = OrderedLoader()
    loader.gates["b"] = threading.Event()
    models = models_of(stack, loader)
    first = models.get("a")
    second = pool.submit(models.get, "b")
    wait_until(lambda: "b" in loader.loads, what="the load")
    assert double(first, 4) == 8
    assert double(models.get("a"), 5) == 10
    assert not second.done()
    loader.gates["b"].set()
    assert double(second.result(10), 6) == 12


def test_the_model_that_was_used_longest_ago_makes_room(stack: ExitStack) -> None:
    loader = OrderedLoader(room=2)
    models = models_of(stack, loader)
    models.get("a")
    gone = models.get("b")
    models.get("a")
    models.get("c")
    assert states(models) == {"a": "loaded", "c": "loaded"}
    with pytest.raises(Unavailable):  # its batcher has ended
        double(gone, 1)
    assert double(models.get("b"), 7) == 14
    assert loader.loads == ["a", "b", "c", "b"]


def test_a_model_in_use_is_not_unloaded_and_the_new_one_waits_for_it(
    stack: ExitStack, pool: ThreadPoolExecutor
) -> None:
    loader = OrderedLoader(room=1)
    models = models_of(stack, loader)
    chunk = Chunk(models, pool, "a")
    assert chunk.got.wait(10)
    second = Chunk(models, pool, "b")
    wait_until(lambda: states(models).get("a") == "unloading", what="a wish for its room")
    assert not second.got.is_set()
    # Nor does a stream of new chunks keep the waiting model out: they come after it.
    late = Chunk(models, pool, "a")
    chunk.end.set()
    assert chunk.future.result(10) == 42
    assert second.got.wait(10)
    assert not late.got.is_set()
    second.end.set()
    late.end.set()
    assert second.future.result(10) == 42
    assert late.future.result(10) == 42
    assert loader.loads == ["a", "b", "a"]


def test_a_chunk_may_ask_again_for_a_model_that_is_to_leave(stack: ExitStack, pool: ThreadPoolExecutor) -> None:
    models = models_of(stack, OrderedLoader(room=1))
    chunk = Chunk(models, pool, "a", again=True)
    assert chunk.got.wait(10)
    other = Chunk(models, pool, "b")
    wait_until(lambda: states(models).get("a") == "unloading", what="a wish for its room")
    chunk.end.set()
    other.end.set()
    assert chunk.future.result(10) == 42
    assert other.future.result(10) == 42


def test_a_model_that_finds_no_room_in_time_says_so_and_the_others_stay(
    stack: ExitStack, pool: ThreadPoolExecutor
) -> None:
    models = models_of(stack, OrderedLoader(room=1), room_s=0.0)
    chunk = Chunk(models, pool, "a")
    assert chunk.got.wait(10)
    with pytest.raises(Unavailable, match="REVLN_MODEL_MEMORY_BYTES"):
        models.get("b")
    assert states(models) == {"a": "loaded", "b": "failed"}
    chunk.end.set()
    assert chunk.future.result(10) == 42


def test_a_model_larger_than_the_budget_is_refused_with_both_figures(stack: ExitStack) -> None:
    models = models_of(stack, OrderedLoader(room=2))
    kept = models.get("a")
    with pytest.raises(ModelUnavailable, match=r"5 bytes.*2 on cpu.*REVLN_MODEL_MEMORY_BYTES"):
        models.get("huge")
    assert double(kept, 1) == 2


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ModelUnavailable("bad weights"), ModelUnavailable, "bad weights"),
        (ZeroDivisionError("x"), Unavailable, "ZeroDivisionError"),
    ],
    ids=["of ours", "a surprise"],
)
def test_a_failed_load_tells_all_who_wait_and_spares_the_others(
    stack: ExitStack, pool: ThreadPoolExecutor, error: Exception, kind: type[RevlnError], says: str
) -> None:
    loader = OrderedLoader()
    loader.fails["a"] = error
    loader.gates["a"] = threading.Event()
    models = models_of(stack, loader)
    asked = [pool.submit(models.get, "a") for _ in range(4)]
    wait_until(lambda: loader.loads, what="the load")
    loader.gates["a"].set()
    for one in asked:
        with pytest.raises(kind, match=says):
            one.result(10)
    with pytest.raises(kind, match=says):
        models.get("a")  # a moment later it is not tried again for each job …
    assert loader.loads == ["a"]
    assert double(models.get("b"), 1) == 2
    (row,) = (row for row in models.describe() if row["name"] == "a")
    assert says in row["error"]["detail"]
    del loader.fails["a"]
    models.load("a")  # … unless the operator says so
    assert double(models.get("a"), 2) == 4


def test_a_failed_load_is_tried_again_later(stack: ExitStack) -> None:
    loader = OrderedLoader()
    loader.fails["a"] = ModelUnavailable("the hub does not answer")
    models = models_of(stack, loader, retry_s=0.0)
    with pytest.raises(ModelUnavailable):
        models.get("a")
    del loader.fails["a"]
    assert double(models.get("a"), 3) == 6


def test_unloading_waits_for_running_chunks_and_gives_up_in_time(stack: ExitStack, pool: ThreadPoolExecutor) -> None:
    models = models_of(stack, OrderedLoader())
    assert not models.unload("a")
    chunk = Chunk(models, pool, "a")
    assert chunk.got.wait(10)
    with pytest.raises(Conflict, match="in use by 1 chunk"):
        models.unload("a", wait_s=0.0)
    assert states(models) == {"a": "loaded"}
    waiting = pool.submit(models.unload, "a")
    chunk.end.set()
    assert chunk.future.result(10) == 42
    assert waiting.result(10)
    assert states(models) == {}


def test_a_chunk_that_waits_for_a_model_can_still_be_canceled(stack: ExitStack, pool: ThreadPoolExecutor) -> None:
    loader = OrderedLoader()
    loader.gates["a"] = threading.Event()
    models = models_of(stack, loader)

    def canceled() -> None:
        raise JobCanceled

    with pytest.raises(JobCanceled), models.held(waiting=canceled):
        models.get("a")
    loader.gates["a"].set()
    assert double(models.get("a"), 1) == 2
    assert models.unload("a"), "the chunk holds it no more"


def test_a_name_that_is_not_configured_is_not_found(stack: ExitStack) -> None:
    with pytest.raises(NotFound, match="there are a, b, c, huge, revln-tiny"):
        models_of(stack, OrderedLoader()).get("../../etc/passwd")


def test_a_real_model_is_measured_before_it_is_loaded_and_leaves_nothing_behind(
    stack: ExitStack, tmp_path: Path
) -> None:
    catalog = ModelCatalog({name: ModelSettings(source=str(save_clip(tmp_path / name))) for name in ("a", "b")})
    parameters = catalog.describe("a").parameters
    assert parameters is not None
    models = LoadedModels(Settings(device="cpu", model_memory_bytes=parameters * 4 + 100), catalog)
    stack.callback(models.close)
    net: Any = weakref.ref(models.get("a").model._net)  # type: ignore[attr-defined]
    assert models.describe()[0]["size_bytes"] == parameters * 4
    models.get("b")
    assert [row["name"] for row in models.describe()] == ["b"]
    gc.collect()
    assert net() is None, "somebody still holds the weights"


def test_the_default_budget_is_a_share_of_what_there_is() -> None:
    from revln.models.memory import host_memory_bytes
    from worker.models.loading import Loader

    whole = host_memory_bytes()
    assert whole > 2**28
    assert Loader(Settings(device="cpu"), ModelCatalog({})).budget("cpu") == whole // 2


def test_a_damaged_model_stops_neither_the_worker_nor_its_neighbours(stack: ExitStack, tmp_path: Path) -> None:
    good, bad = save_clip(tmp_path / "good"), save_clip(tmp_path / "bad")
    (bad / "tokenizer.json").write_text("{")
    catalog = ModelCatalog({"good": ModelSettings(source=str(good)), "bad": ModelSettings(source=str(bad))})
    models = LoadedModels(Settings(device="cpu"), catalog)
    stack.callback(models.close)
    with pytest.raises(ModelUnavailable, match="Tokenizer"):
        models.get("bad")
    assert models.get("good").model.info.family == "clip"
