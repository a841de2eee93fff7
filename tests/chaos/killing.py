"""Workers that are killed, again and again, under load."""

from __future__ import annotations

import time

from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab

__all__: list[str] = []


def _kill_again_and_again(lab: Lab, jobs: int, kills: int, order: str) -> None:
    """At moments spread over the whole run, told by how much is done: so it is the same run on any machine."""
    before = lab.ended()
    moments = sorted(lab.random.sample(range(1, max(jobs - jobs // 20, kills + 1)), kills))
    with lab.traffic(jobs, order):
        for done in moments:
            lab.until(lambda done=done: lab.ended() - before >= done, f"the end of {done} jobs")
            lab.moment()
            lab.stack.kill("worker")
            lab.stack.start_worker()
            killed_at = time.monotonic()
    lab.wait_for_all()
    lab.figures |= {"jobs": jobs, "kills": kills}
    lab.within("drained after", time.monotonic() - killed_at, 90)


@experiment(1, "the worker SIGKILLed again and again", short={"jobs": 100, "kills": 4})
def kills(lab: Lab, *, jobs: int = 1000, kills: int = 20, job_s: float = 0.02) -> None:
    _kill_again_and_again(lab, jobs, kills, f"sleep {job_s}")


@experiment(2, "the same with jobs of 2 ms")
def kills_of_short_jobs(lab: Lab, *, jobs: int = 6000, kills: int = 40) -> None:
    _kill_again_and_again(lab, jobs, kills, "sleep 0.002")
