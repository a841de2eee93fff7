"""One line of the benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Figure", "in_turns", "median_seconds", "seconds"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What revln does and what the bare part does, in one unit; ``bare`` is None where nothing bare compares."""

    name: str
    ours: float
    unit: str
    bare: float | None = None
    bare_name: str = ""
    goal: float | None = None  # of the ratio where there is one: at least that; with ``below`` at most
    below: bool = False

    @property
    def goal_text(self) -> str:
        if self.goal is None:
            return ""
        reached = self.ours if self.ratio is None else self.ratio
        met = reached <= self.goal if self.below else reached >= self.goal
        return f"{'≤' if self.below else '≥'} {self.goal:,g} {'met' if met else 'MISSED'}"

    @property
    def ratio(self) -> float | None:
        return None if self.bare is None else self.ours / self.bare

    @property
    def ours_text(self) -> str:
        return f"{self.ours:,.3f}" if self.unit == "of 1" else f"{self.ours:,.1f} {self.unit}"

    @property
    def bare_text(self) -> str:
        return "" if self.bare is None else f"{self.bare:,.1f} ({self.bare_name})"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ours": round(self.ours, 3),
            "unit": self.unit,
            "bare": None if self.bare is None else round(self.bare, 3),
            "bare_name": self.bare_name,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "goal": self.goal_text or None,
        }


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(repeats: int, work: Callable[[], Any]) -> float:
    """The median of a few runs, after one that does not count: these machines are noisy."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def in_turns(repeats: int, ours: Callable[[], Any], bare: Callable[[], Any]) -> tuple[float, float]:
    """The medians of both, run by turns, so that whatever else the machine does falls on both."""
    ours()
    bare()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)
