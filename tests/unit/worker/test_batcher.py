"""The batcher: it merges, it orders, and whatever fails, every future completes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revln.errors import ItemError, ItemInvalid, OutOfMemory, Unavailable
from revln.jobs.kinds import Priority
from revln.models.base import Operation
from tests.fakes import OrderedModel, OverlappingModel
from tests.stack import wait_until
from worker.models.batcher import Batcher

TEXT = Operation.EMBED_TEXT


@contextmanager
def batcher_of(model: OrderedModel, max_wait_s: float = 0.0, overlap: bool | None = None) -> Iterator[Batcher]:
    batcher = Batcher(model, max_wait_s=max_wait_s, overlap=overlap)
    try:
        yield batcher
    finally:
        model.gate.set()
        batcher.close()


def submit(batcher: Batcher, numbers: Sequence[int], priority: Priority = Priority.NORMAL) -> list[Future[Any]]:
    return [batcher.submit(TEXT, number, priority) for number in numbers]


def block(model: OrderedModel, batcher: Batcher) -> Future[Any]:
    """Put one item into the forward pass and hold it there, so that what follows piles up."""
    model.gate.clear()
    first = batcher.submit(TEXT, -1, Priority.NORMAL)
    wait_until(first.running, what="the first batch")
    return first


def poison(*bad: int) -> Any:
    return lambda batch: ValueError("poison") if set(batch) & set(bad) else None


def test_items_of_many_callers_share_a_batch_up_to_its_limit() -> None:
    model = OrderedModel(limit=8)
    with batcher_of(model) as batcher:
        block(model, batcher)
        futures = submit(batcher, range(20))
        model.gate.set()
        assert [future.result(10) for future in futures] == [2 * number for number in range(20)]
    assert [len(batch) for batch in model.batches] == [1, 8, 8, 4]


def test_a_batch_waits_a_little_to_be_filled() -> None:
    model = OrderedModel(limit=4)
    with batcher_of(model, max_wait_s=5.0) as batcher:
        futures = submit(batcher, range(4))
        assert [future.result(10) for future in futures] == [0, 2, 4, 6]
    assert model.batches == [[0, 1, 2, 3]]


def test_interactive_items_go_before_bulk_and_bulk_fills_their_batch_up() -> None:
    model = OrderedModel(limit=4)
    with batcher_of(model) as batcher:
        block(model, batcher)
        submit(batcher, [1, 2, 3, 4, 5], Priority.BULK)
        futures = submit(batcher, [100, 101], Priority.INTERACTIVE)
        model.gate.set()
        for future in futures:
            future.result(10)
    assert model.batches[1] == [100, 101, 1, 2]


def test_bulk_that_has_waited_long_goes_before_interactive_and_is_not_crowded_out_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.models.batcher._PATIENCE_S", {**dict.fromkeys(Priority, 0.0), Priority.BULK: 1e-9})
    model = OrderedModel(limit=2)
    with batcher_of(model) as batcher:
        block(model, batcher)
        old = submit(batcher, [1], Priority.BULK)
        submit(batcher, [100, 101, 102], Priority.INTERACTIVE)
        young = submit(batcher, [2], Priority.BULK)
        model.gate.set()
        for future in (*old, *young):
            future.result(10)
    assert model.batches[1:] == [[1, 100], [101, 102], [2]]


def test_items_that_must_not_share_a_forward_pass_do_not() -> None:
    model = OrderedModel(limit=8)
    with batcher_of(model) as batcher:
        block(model, batcher)
        futures = submit(batcher, [1, 1001, 2, 1002])
        alone = batcher.submit(TEXT, 3, Priority.NORMAL, alone=True)
        model.gate.set()
        assert [future.result(10) for future in futures] == [2, 2002, 4, 2004]
        assert alone.result(10) == 6
    assert model.batches[1:] == [[1, 2], [1001, 1002], [3]]


def test_a_poisoned_batch_is_halved_until_the_poison_is_alone() -> None:
    model = OrderedModel(limit=8, fails=poison(5))
    with batcher_of(model) as batcher:
        block(model, batcher)
        futures = submit(batcher, range(8))
        model.gate.set()
        for number, future in enumerate(futures):
            if number == 5:
                with pytest.raises(ItemError, match="poison"):
                    future.result(10)
            else:
                assert future.result(10) == 2 * number


def test_an_error_of_ours_reaches_the_caller_as_it_is() -> None:
    model = OrderedModel(fails=lambda _: ItemInvalid("no"))
    with batcher_of(model) as batcher, pytest.raises(ItemInvalid, match="no"):
        batcher.submit(TEXT, 1, Priority.NORMAL).result(10)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried …"),
        RuntimeError("[…] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "CPU"],
)
def test_running_out_of_memory_halves_the_batch_and_is_remembered(error: Exception) -> None:
    model = OrderedModel(limit=8, fails=lambda batch: error if len(batch) > 3 else None)
    with batcher_of(model) as batcher:
        block(model, batcher)
        futures = submit(batcher, range(8))
        model.gate.set()
        assert [future.result(10) for future in futures] == [2 * number for number in range(8)]
        assert batcher.limit(TEXT) == 2
        model.batches.clear()
        block(model, batcher)
        again = submit(batcher, range(8))
        model.gate.set()
        assert [future.result(10) for future in again] == [2 * number for number in range(8)]
    assert max(map(len, model.batches)) == 2, "it does not try the large batch again"


def test_a_model_that_returns_too_few_outputs_fails_its_items_not_the_thread() -> None:
    model = OrderedModel()
    model.forward = lambda operation, batch: []  # type: ignore[method-assign]
    with batcher_of(model) as batcher:
        with pytest.raises(ItemError, match="0 outputs"):
            batcher.submit(TEXT, 1, Priority.NORMAL).result(10)
        del model.forward
        assert batcher.submit(TEXT, 2, Priority.NORMAL).result(10) == 4


def test_what_was_canceled_while_it_waited_is_not_computed() -> None:
    model = OrderedModel(limit=1)
    with batcher_of(model) as batcher:
        block(model, batcher)
        dropped, kept = submit(batcher, [7, 8])
        assert dropped.cancel()
        model.gate.set()
        assert kept.result(10) == 16
    assert [7] not in model.batches


def test_closing_completes_every_future() -> None:
    model = OrderedModel(limit=1)
    batcher = Batcher(model, max_wait_s=0.0)
    first = block(model, batcher)
    waiting = submit(batcher, [1, 2])
    model.gate.set()
    batcher.close()
    assert first.result(10) == -2
    for future in waiting:
        # One of them may have been computed before the batcher saw that it was closed.
        assert future.done()
    with pytest.raises(Unavailable):
        batcher.submit(TEXT, 3, Priority.NORMAL).result(10)


def test_a_full_batch_is_put_together_while_the_one_before_runs() -> None:
    model = OverlappingModel(limit=4)
    with batcher_of(model, overlap=True) as batcher:
        block(model, batcher)
        futures = submit(batcher, range(4))
        wait_until(lambda: model.collated[1:], what="the next batch")
        assert model.batches == [], "the first one still runs"
        # One that is not full goes on filling itself, and waits for its turn.
        futures += submit(batcher, [4, 5])
        model.gate.set()
        assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert model.batches == [[-1], [0, 1, 2, 3], [4, 5]]
    assert model.collated == model.batches, "none was put together twice"


def test_a_batch_that_cannot_be_put_together_fails_only_the_item_whose_fault_it_is() -> None:
    model = OverlappingModel(limit=4, refuses=lambda batch: 2 in batch)
    with batcher_of(model, overlap=True) as batcher:
        block(model, batcher)
        futures = submit(batcher, range(4))
        model.gate.set()
        with pytest.raises(ItemError, match="put together"):
            futures[2].result(10)
        assert [futures[i].result(10) for i in (0, 1, 3)] == [0, 2, 6]


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 1999), max_size=40),
    bad=st.sets(st.integers(0, 1999), max_size=5),
    limit=st.integers(1, 9),
    memory=st.integers(1, 9),
    overlap=st.booleans(),
)
def test_whatever_is_poison_and_however_batches_fall_each_item_gets_its_own_answer(
    numbers: list[int], bad: set[int], limit: int, memory: int, overlap: bool
) -> None:
    def fails(batch: Sequence[Any]) -> Exception | None:
        return MemoryError() if len(batch) > memory else poison(*bad)(batch)

    with batcher_of(OverlappingModel(limit=limit, fails=fails), overlap=overlap) as batcher:
        for number, future in zip(numbers, submit(batcher, numbers), strict=True):
            if number in bad:
                with pytest.raises(ItemError):
                    future.result(10)
            else:
                assert future.result(10) == 2 * number


def test_an_item_for_which_there_is_no_memory_even_alone_may_be_tried_later() -> None:
    with batcher_of(OrderedModel(fails=lambda batch: MemoryError() if 3 in batch else None)) as batcher:
        futures = submit(batcher, range(8))
        assert isinstance(futures[3].exception(10), OutOfMemory)
        assert [futures[number].result(10) for number in (0, 1, 2, 4, 5, 6, 7)] == [0, 2, 4, 8, 10, 12, 14]
