"""Show on stderr how far long work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar", "tracked"]

_T = TypeVar("_T")


@contextmanager
def progress_bar(
    description: str, total: int | None, *, done: int = 0, hidden: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """Yield a function to call with how much more is done, and a note. A file gets the last state only."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=hidden) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(more: int, note: str = "") -> None:
            progress.update(task, advance=more, note=note)

        yield advance


def tracked(items: Sequence[_T], description: str, *, hidden: bool = False) -> Iterator[_T]:
    """Yield the items, each counted once the next is asked for."""
    with progress_bar(description, len(items), hidden=hidden) as advance:
        for item in items:
            yield item
            advance(1, "")
