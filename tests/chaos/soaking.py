"""Half an hour of traffic in which something dies every minute: nothing is lost, and nothing grows."""

from __future__ import annotations

import time
from collections import defaultdict

import psutil
from scipy.stats import theilslopes

from tests.chaos.doorbell import restart_redis
from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab

__all__: list[str] = []

_SAMPLE_S = 5.0
_SLOPE_MB_MIN = 1.0


class _Memory:
    """The resident memory of processes, now and then: of each (part, pid) its minutes since the start, and its MB."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._seen: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)

    def look(self, lab: Lab, *parts: str) -> None:
        minute = (time.monotonic() - self._begun) / 60
        for part in parts:
            pid = lab.stack.pid(part)
            self._seen[part, pid].append((minute, psutil.Process(pid).memory_info().rss / 2**20))

    def slopes(self, warm_min: float, least_min: float) -> dict[str, float]:
        """MB a minute of each part, by its process that lived longest, if it was seen for ``least_min`` minutes.

        Theil and Sen's: the median of the slopes between any two samples, so neither one large batch nor memory
        that is given back late makes a slope. What a process takes in its first ``warm_min`` minutes is left out.
        """
        slopes: dict[str, float] = {}
        for (part, _), seen in sorted(self._seen.items(), key=lambda one: len(one[1])):
            warm = [(minute, size) for minute, size in seen if minute >= seen[0][0] + warm_min]
            if warm and warm[-1][0] - warm[0][0] >= least_min:
                minutes, sizes = zip(*warm, strict=True)
                slopes[part] = float(theilslopes(sizes, minutes).slope)
        return slopes


@experiment(19, "a soak: a worker killed every minute, Redis every five")
def soak(lab: Lab, *, minutes: int = 30, jobs_per_s: float = 5.0, kill_s: float = 60.0, redis_kills: int = 5) -> None:
    """Two workers: one is killed again and again, the other's memory is looked at, as the API's is."""
    stack, memory, kills = lab.stack, _Memory(), 0
    stack.start_worker("second")
    begun = looked = time.monotonic()

    def until(moment: float) -> None:
        nonlocal looked
        while looked < moment:
            looked = min(looked + _SAMPLE_S, moment)
            lab.until(lambda at=looked: time.monotonic() >= at, "the next look")
            memory.look(lab, "api", "second")

    with lab.steady_traffic(jobs_per_s, "sleep 0.01"):
        while begun + (kills + 1) * kill_s < begun + minutes * 60:
            kills += 1
            until(begun + kills * kill_s)
            lab.moment(1.0)
            stack.kill("worker")
            stack.start_worker()
            if kills % redis_kills == 0:
                lab.moment(1.0)
                restart_redis(lab)
        until(begun + minutes * 60)
    lab.wait_for_all()
    lab.figures |= {"jobs": len(lab.accepted), "kills": kills, "of Redis": kills // redis_kills}
    slopes = memory.slopes(minutes / 6, minutes / 3)
    lab.figures |= {f"{part} grew": f"{slope:+.2f} MB/min" for part, slope in slopes.items()}
    lab.expect(slopes.keys() == {"api", "second"}, f"only {sorted(slopes)} lived long enough for a slope")
    for part, slope in slopes.items():
        lab.expect(slope < _SLOPE_MB_MIN, f"{part} grew by {slope:.2f} MB/min, under {_SLOPE_MB_MIN} is wanted")
