"""When a delivery that failed is tried again, and which receivers are spared meanwhile."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from revln.jobs.webhooks import GIVE_UP_S, Webhook, WebhookEvent, retry_delay_s
from worker.webhooks.receivers import Lanes


def test_ten_tries_span_three_days_and_the_jitter_only_adds() -> None:
    for chance, days in ((0.0, 3.15), (1.0, 4.0)):
        delays = [delay for tries in range(1, 20) if (delay := retry_delay_s(tries, chance)) is not None]
        assert len(delays) == 9
        assert delays == sorted(delays)
        assert 3.1 <= sum(delays) / 86_400 <= days
        assert sum(delays) < GIVE_UP_S
    assert retry_delay_s(1, 0.0) == 5


def test_a_receiver_is_not_asked_before_it_said_but_not_later_than_a_day() -> None:
    assert retry_delay_s(1, 0.0, asked_s=120.0) == 120.0
    assert retry_delay_s(2, 0.0, asked_s=120.0) == 300.0
    assert retry_delay_s(1, 0.0, asked_s=1e9) == 86_400.0


@pytest.mark.parametrize("events", [[], ["webhook.test"], ["job.done"]])
def test_events_that_no_job_has_are_refused(events: list[str]) -> None:
    with pytest.raises(ValidationError):
        Webhook.model_validate({"url": "https://example.org", "events": events})


def test_progress_is_told_only_to_those_who_ask() -> None:
    events = Webhook(url="https://example.org").events
    assert set(WebhookEvent) - set(events) == {WebhookEvent.PROGRESS}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_receiver_that_does_not_answer_is_shut_for_a_time_that_doubles_and_then_asked_by_one() -> None:
    clock = Clock()
    lanes = Lanes(room=4, clock=clock)
    for pause in (5.0, 10.0, 20.0):
        lanes.begin("a")
        lanes.end("a", overloaded=True)
        clock.now += pause - 0.1
        assert lanes.shut() == ["a"]
        clock.now += 0.2
        assert lanes.shut() == []
        assert lanes.rooms() == {"a": 1}
    lanes.begin("a")
    assert lanes.rooms() == {"a": 0}
    lanes.end("a", overloaded=False)
    assert lanes.shut() == []
    assert lanes.rooms().get("a", lanes.room) == 4


def test_a_receiver_that_asks_for_time_is_given_it() -> None:
    clock = Clock()
    lanes = Lanes(room=4, clock=clock)
    lanes.begin("a")
    lanes.end("a", overloaded=True, asked_s=3600.0)
    clock.now += 3599.0
    assert lanes.shut() == ["a"]


def test_receivers_that_were_quiet_for_long_are_forgotten() -> None:
    clock = Clock()
    lanes = Lanes(room=4, clock=clock)
    for number in range(100):
        lanes.begin(str(number))
        lanes.end(str(number), overloaded=True)
    clock.now += 1000.0
    lanes.begin("last")
    lanes.end("last", overloaded=False)
    assert set(lanes.rooms()) <= {"last"}
