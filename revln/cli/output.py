"""How jobs and collections read on a terminal."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from revln.client import Job

__all__ = ["jobs_table", "print_json", "seconds_of", "show_collections", "show_job"]


def jobs_table(found: list[Job]) -> Any:
    """Jobs as a rich table: id, kind, status, items, seconds."""
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("id", "kind", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("items", "seconds"):
        table.add_column(name, justify="right")
    colours = {"succeeded": "green", "failed": "red", "running": "cyan", "queued": "yellow"}
    for each in found:
        status, counts = each["status"], each["counts"]
        items = f"{counts['total']} ({counts['failed']} failed)" if counts["failed"] else str(counts["total"])
        colour = colours.get(status, "magenta")
        seconds = seconds_of(each)
        table.add_row(
            each["id"],
            each["kind"],
            f"[{colour}]{status}[/]",
            items,
            "" if seconds is None else f"{seconds:.2f}",
        )
    return table


def seconds_of(found: Job) -> float | None:
    """From the first chunk's start to the end; None while there is no end."""
    if not found.get("finished_at"):
        return None
    began = datetime.fromisoformat(found.get("started_at") or found["created_at"])
    return (datetime.fromisoformat(found["finished_at"]) - began).total_seconds()


def show_job(found: Job, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    counts = found["counts"]
    done = counts["succeeded"] + counts["failed"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    seconds = seconds_of(found)
    took = f" in {seconds:.2f} s" if seconds is not None else ""
    click.echo(f"{found['id']}  {found['kind']}  {found['status']}  {done} of {counts['total']} items{failed}{took}")
    if found.get("error"):
        click.echo(f"  {found['error']['code']}: {found['error']['detail']}")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def show_collections(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for each in found:
        of = f"model {each['model']}" if each["model"] else "your own vectors"
        click.echo(f"{each['name']}  {each['count']} items  {of}  {each['dim']} dimensions")
