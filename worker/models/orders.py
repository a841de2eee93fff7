"""Carries out what operators ask of this worker's models, and tells in the worker's row what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread

from revln.db.engine import Database
from revln.db.model_orders import Order, model_orders
from revln.errors import RevlnError
from worker.models.pool import LoadedModels

__all__ = ["ModelOrders"]

log = logging.getLogger(__name__)


class ModelOrders:
    """``look`` is called by the sweeper every few seconds. ``told`` writes the worker's row."""

    def __init__(self, db: Database, models: LoadedModels, told: Callable[[], None]) -> None:
        self._db = db
        self._models = models
        self._told = told
        self._seen: dict[str, int] | None = None

    def look(self) -> None:
        """Start what was ordered since the last look; orders from before this worker began are not its own."""
        with self._db.read() as connection:
            orders = model_orders(connection)
        seen, self._seen = self._seen, {order.name: order.number for order in orders}
        if seen is None:
            return
        for order in orders:
            if order.number != seen.get(order.name, 0):
                # Not here: a load takes as long as it takes, and the sweeper has other work.
                Thread(target=self._carry_out, args=(order,), name=f"order-{order.name}", daemon=True).start()

    def _carry_out(self, order: Order) -> None:
        try:
            if order.wanted == "load":
                self._models.load(order.name)
            else:
                self._models.unload(order.name)
        except RevlnError as err:
            log.warning("%s of model %s: %s", order.wanted, order.name, err)
        finally:
            self._models.note_order(order.name, order.number)
        try:
            self._told()
        except RevlnError as err:
            log.warning("the worker's row could not be written: %s", err)  # the next heartbeat comes in seconds
