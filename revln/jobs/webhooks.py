"""What a client may say of webhooks, and when a delivery that failed is tried again. No clock, no database."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from revln.jobs.schemas import Strict
from revln.jobs.text import storable

__all__ = [
    "GIVE_UP_S",
    "TEST_EVENT",
    "TRIED_ONCE",
    "DeliveryState",
    "Webhook",
    "WebhookEvent",
    "WebhookUrl",
    "retry_delay_s",
]


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # every try failed; a replay begins anew
    DISABLED = "disabled"  # the receiver answered 410: it wants no more

    @property
    def settled(self) -> bool:
        return self is not DeliveryState.PENDING


class WebhookEvent(StrEnum):
    """What can be told of a job; the names are those of its event log."""

    STARTED = "job.started"
    PROGRESS = "job.progress"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    EXPIRED = "job.expired"


TEST_EVENT = "webhook.test"
# Of progress the next one says more than a second try; a test wants its answer now.
TRIED_ONCE = frozenset({WebhookEvent.PROGRESS, TEST_EVENT})

WebhookUrl = Annotated[
    str,
    Field(min_length=1, max_length=2_048, description="http or https; a query is fine, a user name is not."),
    AfterValidator(storable),
]


class Webhook(Strict):
    """Where to tell of a job's events, and of which."""

    url: WebhookUrl
    events: Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WebhookEvent))] = Field(
        default=[event for event in WebhookEvent if event is not WebhookEvent.PROGRESS],
        description="Which events; all but job.progress unless you say.",
    )


# The specification's example: the tenth and last try is three days after the first.
_SCHEDULE_S = (5, 5 * 60, 30 * 60, 2 * 3_600, 5 * 3_600, 10 * 3_600, 14 * 3_600, 20 * 3_600, 24 * 3_600)
_JITTER = 0.25  # later by up to this share, never earlier
_ASKED_MOST_S = 24 * 3_600.0
# Past the last try whatever the jitter; for what never came to be tried, its receiver being shut for days.
GIVE_UP_S = 4 * 86_400.0


def retry_delay_s(tries: int, chance: float, asked_s: float = 0.0) -> float | None:
    """Seconds to the next try after ``tries`` that failed, or None if there is none.

    Args:
        chance: 0 to 1, for the jitter: receivers that came down together are not all asked again at once.
        asked_s: what the receiver's Retry-After said; honoured up to a day.
    """
    if tries > len(_SCHEDULE_S):
        return None
    return max(_SCHEDULE_S[tries - 1] * (1 + _JITTER * chance), min(asked_s, _ASKED_MOST_S))
