"""Delivers what the outbox holds. Runs in every worker; each step is safe beside others.

A thread looks for what is due; a pool of threads posts, because receivers are slow and strangers' receivers may be slow
on purpose. Nothing else in the worker waits for them.
"""

from __future__ import annotations

import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Semaphore

from revln.db.engine import Database
from revln.db.webhooks.deliveries import Delivery, Outcome, claim_deliveries, record
from revln.db.webhooks.secrets import webhook_secrets
from revln.errors import FetchError, RevlnError
from revln.fetch import Answer, UrlPoster, seconds_asked
from revln.jobs.webhooks import TRIED_ONCE, DeliveryState, retry_delay_s
from revln.settings import Settings
from revln.timestamps import timestamp
from worker.loop import Loop
from worker.webhooks.receivers import Lanes

__all__ = ["WebhookSender"]

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # a receiver hears of a change within this; `wake` makes it sooner in the worker that made the change
_LEASE_MARGIN_S = 30.0  # over the time that a post may take, for a database that is slow to take the record
_GONE = 410
_OVERLOADED = frozenset({429, 502, 503, 504})


class WebhookSender(Loop):
    """Posts due deliveries, ``settings.webhook_concurrency`` at once and of one receiver a few."""

    def __init__(self, settings: Settings, db: Database, poster: UrlPoster | None = None) -> None:
        # Those under way are waited for: each has its deadline.
        super().__init__("webhooks", _LOOK_S, self._look, jitter=0.25, patience_s=None)
        self._db = db
        self._lease_s = settings.webhook_timeout_s + _LEASE_MARGIN_S
        self._poster = poster or UrlPoster(settings.webhook_timeout_s, settings.webhook_private_addresses)
        self._lanes = Lanes(settings.webhook_concurrency_per_host)
        self._most = settings.webhook_concurrency
        self._free = Semaphore(self._most)
        self._pool = ThreadPoolExecutor(self._most, "webhook")

    def stop(self) -> None:
        """Claim no more, and wait for what is under way: each has its deadline."""
        super().stop()
        self._pool.shutdown()

    def _look(self) -> None:
        while not self.stopping.is_set() and self.look():
            pass

    def look(self) -> int:
        """Claim what is due and there is room for, and have it posted; how many."""
        free = self._take_free()
        claimed: list[Delivery] = []
        try:
            if free:
                claimed = claim_deliveries(
                    self._db, free, self._lanes.rooms(), self._lanes.room, self._lanes.shut(), self._lease_s
                )
        finally:
            for _ in range(free - len(claimed)):
                self._free.release()
        for delivery in claimed:
            self._lanes.begin(delivery.lane)
            self._pool.submit(self._deliver, delivery)
        return len(claimed)

    def _take_free(self) -> int:
        free = 0
        while self._free.acquire(blocking=False):
            free += 1
        return free

    def _deliver(self, delivery: Delivery) -> None:
        overloaded, asked_s = True, 0.0
        try:
            outcome, overloaded, asked_s = self._attempt(delivery)
            if record(self._db, delivery, outcome):
                log.info(
                    "webhook %s of job %s, attempt %d: %s", delivery.id, delivery.job_id, delivery.attempts,
                    outcome.error or outcome.status,
                )  # fmt: skip
        except RevlnError as err:
            # The database is away. The lease runs out, and the delivery is made again under the same id.
            log.warning("webhook %s: not recorded: %s", delivery.id, err)
        except Exception as err:  # noqa: BLE001 - a delivery ends here; its lease runs out
            log.warning("webhook %s: %s: %s", delivery.id, type(err).__name__, err)
        finally:
            self._lanes.end(delivery.lane, overloaded=overloaded, asked_s=asked_s)
            self._free.release()
            self.wake()

    def _attempt(self, delivery: Delivery) -> tuple[Outcome, bool, float]:
        """Post once: what came of it, whether its receiver is to be spared for a while, and for how long it asked."""
        body = body_of(delivery)
        headers = {"Content-Type": "application/json", **self._signed(delivery, body)}
        try:
            answer = self._poster.post(delivery.url, body, headers)
        except FetchError as err:
            return _failed(delivery, None, err.message, 0.0), True, 0.0
        if 200 <= answer.status < 300:
            return Outcome(DeliveryState.DELIVERED, answer.status), False, 0.0
        if answer.status == _GONE:
            error = "answered 410: it wants no more, so nothing goes there until it is enabled again"
            return Outcome(DeliveryState.DISABLED, answer.status, error), False, 0.0
        overloaded = answer.status in _OVERLOADED
        asked_s = seconds_asked(answer.retry_after)
        return _failed(delivery, answer.status, _said(answer), asked_s), overloaded, asked_s

    def _signed(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        """The specification's headers: one signature for each secret that holds."""
        from standardwebhooks import Webhook  # not needed to run a worker that has nothing to deliver

        now = datetime.now(UTC)
        secrets = webhook_secrets(self._db, delivery.tenant)
        signatures = [Webhook(each.secret).sign(delivery.id, now, body.decode()) for each in secrets]
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def body_of(delivery: Delivery) -> bytes:
    """The same at every attempt."""
    event = {"type": delivery.type, "timestamp": timestamp(delivery.created_at), "data": delivery.data}
    return json.dumps(event, separators=(",", ":")).encode()


def _failed(delivery: Delivery, status: int | None, error: str, asked_s: float) -> Outcome:
    chance = random.random()  # noqa: S311 - jitter
    delay_s = None if delivery.type in TRIED_ONCE else retry_delay_s(delivery.tries, chance, asked_s)
    if delay_s is None:
        return Outcome(DeliveryState.FAILED, status, error)
    return Outcome(DeliveryState.PENDING, status, error, delay_s)


def _said(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return f"answered {answer.status}: redirects are not followed; name the URL that it leads to"
    return f"answered {answer.status}"
