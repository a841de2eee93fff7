"""`revln index build`, `snapshots` and `rollback`: the built indexes of a collection."""

from __future__ import annotations

from typing import Any

import click

from revln.cli.jobs import as_json_option, connect, priority_option, timeout_option, url_option, wait_option
from revln.cli.numbers import Number
from revln.cli.output import print_json, show_job
from revln.jobs.state import JobStatus

__all__ = ["build_command", "rollback_command", "snapshots_command"]

_WIDE = 200  # no terminal may cut the ids, which --to takes
_TYPES = ["auto", "flat", "hnsw", "ivf", "ivfpq"]


@click.command("build", short_help="Build the index that is searched.")
@click.argument("name", metavar="NAME")
@click.option("--type", "kind", type=click.Choice(_TYPES), default="auto", show_default=True, help="See docs/index.md.")
@click.option("--recall", type=Number(0, 1, min_open=True), help="Least recall@10.  [default: the server's]")
@click.option("--lists", type=click.IntRange(1), help="Of ivf and ivfpq: clusters.")
@click.option("--links", type=click.IntRange(4), help="Of hnsw: links of a row.")
@priority_option
@wait_option
@timeout_option
@url_option
@as_json_option
def build_command(
    name: str,
    kind: str,
    recall: float | None,
    lists: int | None,
    links: int | None,
    priority: str,
    wait: bool,
    timeout: float | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Build the index of a collection and search it from then on; searches go on meanwhile.

    \b
    Examples:
      revln index build photos
      revln index build photos --type ivf --recall 0.99 --priority bulk
    """
    options = {"type": kind, "recall": recall, "lists": lists, "links": links}
    asked = {key: value for key, value in options.items() if value is not None}
    with connect(url) as client:
        job = client.submit("index", {"collection": name, "operation": "build", "index": asked}, priority=priority)
        if wait:
            job = client.wait(job["id"], timeout)
        if job["status"] != JobStatus.SUCCEEDED:
            show_job(job, as_json)
            return 1 if job["done"] else 0
        built = client.result(job["id"])["items"][0]["snapshot"]
    if as_json:
        print_json(built)
    else:
        click.echo(
            f"{name}: {built['factory']} over {built['count']:,} items in {built['build_s']:.1f} s, recall@10 "
            f"{built['recall']:.3f}, {built['qps']:,.0f} queries/s ({built['exact_qps']:,.0f} exact)"
        )
    return 0


@click.command("snapshots", short_help="List the built indexes.")
@click.argument("name", metavar="NAME")
@url_option
@as_json_option
def snapshots_command(name: str, url: str | None, as_json: bool) -> None:
    """List the built indexes of a collection that are kept, newest first."""
    with connect(url) as client:
        found = client.snapshots(name)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(f"{name} has no snapshot: every vector is looked at. revln index build {name} makes one.")
        return
    from rich.console import Console

    Console(width=_WIDE).print(_table(found))


def _table(found: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None)
    for column in ("", "id", "state", "type", "items", "up to", "recall@10", "queries/s", "exact", "MB", "built"):
        table.add_column(column, justify="left" if column in ("", "id", "state", "type", "built") else "right")
    for one in found:
        table.add_row(
            "*" if one["current"] else "",
            one["id"],
            one["state"],
            one["type"],
            f"{one['count']:,}",
            f"{one['up_to_seq']:,}",
            f"{one['recall']:.3f}",
            f"{one['qps']:,.0f}",
            f"{one['exact_qps']:,.0f}",
            f"{one['size_bytes'] / 1e6:,.1f}",
            one["created_at"],
        )
    return table


@click.command("rollback", short_help="Search an older built index again.")
@click.argument("name", metavar="NAME")
@click.option("--to", "snapshot", metavar="ID", help="Which one.  [default: the one before the current one]")
@url_option
@as_json_option
def rollback_command(name: str, snapshot: str | None, url: str | None, as_json: bool) -> None:
    """Search an older built index again. The items stay as they are now."""
    with connect(url) as client:
        served = client.rollback(name, snapshot)
    if as_json:
        print_json(served)
    else:
        click.echo(f"{name} is searched from snapshot {served['id']} ({served['type']}, {served['count']:,} items)")
