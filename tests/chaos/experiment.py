"""What an experiment is: a number, a sentence, sizes that may be changed, and a function that breaks things."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.databases import DATABASES

__all__ = ["EXPERIMENTS", "Experiment", "experiment"]


@dataclass(frozen=True)
class Experiment:
    """One row of the table in docs/chaos.md.

    Attributes:
        run: gets a `tests.chaos.lab.Lab` and its sizes, which are its keyword-only parameters.
        short: other sizes, with which `make test` runs it; None: it has no short form.
        settings: of its stack, over the product's own.
        stack: whether it wants a stack of Redis, API and worker; else it makes what it needs.
        own_server: whether it wants a PostgreSQL server that nobody else uses.
    """

    number: int
    title: str
    run: Callable[..., None]
    databases: tuple[str, ...]
    short: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stack: bool = True
    own_server: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        parameters = inspect.signature(self.run).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


EXPERIMENTS: list[Experiment] = []


def experiment(
    number: int, title: str, *, databases: tuple[str, ...] = tuple(DATABASES), **more: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function in the list."""

    def enter(run: Callable[..., None]) -> Callable[..., None]:
        EXPERIMENTS.append(Experiment(number, title, run, databases, **more))
        return run

    return enter
