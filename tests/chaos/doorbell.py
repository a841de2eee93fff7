"""Redis dies, forgets, stops, freezes and drops its clients: nobody loses a job for it."""

from __future__ import annotations

import signal
import time

from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab

__all__ = ["restart_redis"]

_FORGETFUL = ("--appendonly", "no")


def restart_redis(lab: Lab) -> None:
    """Kill it; the next one knows of nothing."""
    lab.stack.kill("redis")
    lab.stack.start_redis(*_FORGETFUL)


@experiment(3, "Redis killed without persistence, then flushed", short={"jobs": 60, "kills": 2, "queued": 40})
def redis_forgets(lab: Lab, *, jobs: int = 1000, kills: int = 3, queued: int = 500) -> None:
    restart_redis(lab)
    before = lab.ended()
    moments = sorted(lab.random.sample(range(1, jobs - jobs // 10), kills))
    with lab.traffic(jobs, "sleep 0.01"):
        for done in moments:
            lab.until(lambda done=done: lab.ended() - before >= done, f"the end of {done} jobs")
            lab.moment()
            restart_redis(lab)
    lab.wait_for_all()
    lab.within("longest pause", lab.longest_pause_s(), 15)
    lab.stack.kill("worker")
    with lab.traffic(queued, "sleep 0.01"):
        pass
    lab.until(lambda: any(lab.stack.redis.llen(f"{kind}.normal") for kind in ("embed", "index")), "the first messages")
    lab.stack.redis.flushall()
    flushed_at, ended = time.monotonic(), lab.ended()
    lab.stack.start_worker()
    lab.until(lambda: lab.ended() > ended, "the first job after the flush")
    lab.within("resumed after a flush", time.monotonic() - flushed_at, 15)
    lab.wait_for_all()
    lab.figures |= {"jobs": jobs + queued, "kills": kills}


@experiment(4, "submissions while Redis is stopped, then frozen", short={"jobs": 20, "stopped_s": 0.5, "frozen_s": 0.5})
def redis_is_away(lab: Lab, *, jobs: int = 200, stopped_s: float = 60.0, frozen_s: float = 30.0) -> None:
    times: list[float] = []

    def submit_for(seconds: float, count: int) -> None:
        begun = time.monotonic()
        for number in range(count):
            at = time.monotonic()
            lab.submit("sleep 0.002")  # anything but a 202 ends the experiment
            times.append(time.monotonic() - at)
            time.sleep(max(0.0, begun + seconds * (number + 1) / count - time.monotonic()))

    lab.stack.kill("redis")
    submit_for(stopped_s, jobs // 2)
    lab.stack.start_redis()
    lab.stack.send("redis", signal.SIGSTOP)
    submit_for(frozen_s, jobs - jobs // 2)
    lab.stack.send("redis", signal.SIGCONT)
    back_at = time.monotonic()
    lab.wait_for_all()
    lab.within("all done after", time.monotonic() - back_at, 60)
    times.sort()
    lab.within("p99", times[int(len(times) * 0.99) - 1], 0.5)
    lab.figures["p99"] = f"{times[int(len(times) * 0.99) - 1] * 1000:.0f} ms"
    lab.figures["accepted"] = jobs


@experiment(5, "every client of Redis cut off every 2 s")
def clients_are_cut_off(lab: Lab, *, for_s: float = 30.0, every_s: float = 2.0, jobs_per_s: float = 20.0) -> None:
    cuts = 0
    with lab.steady_traffic(jobs_per_s, "sleep 0.005"):
        lab.until(lambda: lab.ended() >= 10, "the first jobs")
        begun = time.monotonic()
        while (now := time.monotonic()) < begun + for_s:
            lab.until(lambda at=now + every_s: time.monotonic() >= at, "the next cut")
            lab.moment()
            lab.stack.redis.client_kill_filter(_type="normal")
            cuts += 1
        ended = lab.ended()
        lab.until(lambda: lab.ended() > ended + 10, "jobs after the last cut")
    lab.wait_for_all()
    # Whoever was cut off, and whoever died of it: the pause is until somebody works again.
    lab.within("longest pause", lab.longest_pause_s(), 10)
    lab.figures |= {"jobs": len(lab.accepted), "cuts": cuts}
