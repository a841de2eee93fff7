"""Numbers as options: finite, and small enough for what takes them."""

from __future__ import annotations

import math
import sys
from typing import Any

import click

__all__ = ["Count", "Number"]


class Number(click.FloatRange):
    """As `click.FloatRange`, which lets nan through: it is in no range, and outside of none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


class Count(click.IntRange):
    """At least 1, and no more than Python counts by."""

    def __init__(self) -> None:
        super().__init__(1, sys.maxsize)
