"""Orders to load and unload models: written down once, carried out by every worker, and told of in its row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from revln.access import OWNER
from revln.db.engine import Database
from revln.db.model_orders import Order, model_orders, place_order
from revln.errors import ModelUnavailable
from revln.models.registry import ModelCatalog
from revln.settings import ModelSettings, Settings
from tests.fakes import OrderedLoader
from tests.stack import wait_until
from worker.models.orders import ModelOrders
from worker.models.pool import LoadedModels


class Worker:
    """The parts of a worker that have to do with models; ``told`` counts how often it wrote its row."""

    def __init__(self, db: Database) -> None:
        self.loader = OrderedLoader()
        catalog = ModelCatalog({name: ModelSettings(source=f"/nowhere/{name}") for name in ("a", "b")})
        self.models = LoadedModels(Settings(device="cpu"), catalog, self.loader)
        self.told = threading.Semaphore(0)
        self.orders = ModelOrders(db, self.models, self.told.release)

    def shows(self) -> dict[str, tuple[str, int]]:
        return {row["name"]: (row["state"], row["order"]) for row in self.models.describe()}

    def carry_out(self) -> None:
        self.orders.look()
        assert self.told.acquire(timeout=30)


@pytest.fixture
def worker(db: Database) -> Iterator[Worker]:
    made = Worker(db)
    yield made
    made.models.close()


def test_orders_of_one_model_are_counted_and_the_last_one_counts(db: Database) -> None:
    assert place_order(db, "a", "load", OWNER) == Order("a", "load", 1)
    assert place_order(db, "b", "unload", OWNER) == Order("b", "unload", 1)
    assert place_order(db, "a", "unload", OWNER) == Order("a", "unload", 2)
    with db.read() as connection:
        assert set(model_orders(connection)) == {Order("a", "unload", 2), Order("b", "unload", 1)}


def test_first_orders_placed_at_once_get_numbers_of_their_own(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [order.number for order in pool.map(lambda _: place_order(db, "a", "load", OWNER), range(8))]
    assert sorted(numbers) == list(range(1, 9))


def test_every_worker_carries_an_order_out_once(db: Database, worker: Worker) -> None:
    other = Worker(db)
    for each in (worker, other):
        each.orders.look()  # as at its start
    place_order(db, "a", "load", OWNER)
    for each in (worker, other):
        each.carry_out()
        assert each.shows() == {"a": ("loaded", 1)}
    worker.models.unload("a")  # as another model's load may do
    worker.orders.look()
    assert worker.shows() == {"a": ("unloaded", 1)}, "an old order does not bring it back"
    place_order(db, "a", "unload", OWNER)
    other.carry_out()
    assert other.shows() == {"a": ("unloaded", 2)}
    other.models.close()


def test_orders_from_before_a_worker_began_are_not_its_own(db: Database, worker: Worker) -> None:
    place_order(db, "a", "load", OWNER)
    worker.orders.look()
    place_order(db, "b", "load", OWNER)
    worker.carry_out()
    assert worker.shows() == {"b": ("loaded", 1)}
    assert worker.loader.loads == ["b"]


def test_an_order_that_fails_shows_why_and_the_next_one_is_carried_out(db: Database, worker: Worker) -> None:
    worker.loader.fails["a"] = ModelUnavailable("no weights")
    worker.orders.look()
    place_order(db, "a", "load", OWNER)
    worker.carry_out()
    (row,) = worker.models.describe()
    assert (row["state"], row["order"], row["error"]["detail"]) == ("failed", 1, "no weights")
    del worker.loader.fails["a"]
    place_order(db, "a", "load", OWNER)
    worker.carry_out()
    assert worker.shows() == {"a": ("loaded", 2)}


def test_a_slow_load_keeps_no_other_order_waiting(db: Database, worker: Worker) -> None:
    worker.loader.gates["a"] = threading.Event()
    worker.orders.look()
    place_order(db, "a", "load", OWNER)
    worker.orders.look()
    wait_until(lambda: worker.loader.loads, what="the slow load")
    place_order(db, "b", "load", OWNER)
    worker.carry_out()
    assert worker.shows() == {"a": ("loading", 0), "b": ("loaded", 1)}
    worker.loader.gates["a"].set()
    assert worker.told.acquire(timeout=30)
    assert worker.shows()["a"] == ("loaded", 1)
