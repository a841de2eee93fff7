"""`revln dead`: jobs with chunks that were given up, and why; run them again."""

from __future__ import annotations

import itertools

import click

from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.numbers import Count
from revln.cli.output import print_json, show_job
from revln.errors import Conflict

__all__ = ["dead"]


@click.group()
def dead() -> None:
    """Show dead letters, and run them again.

    A chunk is given up when it has failed too often, or when workers died or hung too often while they ran it.
    """


@dead.command(name="list")
@click.option("--limit", type=Count(), default=20, show_default=True, help="How many jobs.")
@url_option
@as_json_option
def list_dead(limit: int, url: str | None, as_json: bool) -> None:
    """List the jobs that have some, newest first, and what went wrong with each chunk."""
    with connect(url) as client:
        found = [
            {**job, "dead": list(client.chunks(job["id"], state="dead"))}
            for job in itertools.islice(client.jobs(dead="true", limit=min(limit, 100)), limit)
        ]
    if as_json:
        print_json(found)
        return
    for job in found:
        show_job({**job, "error": None}, as_json)
        for chunk in job["dead"]:
            first, total = chunk["first_index"], chunk["counts"]["total"]
            items = f"item {first}" if total == 1 else f"items {first} to {first + total - 1}"
            error = chunk["error"] or {"code": "unknown", "detail": ""}
            click.echo(f"  chunk {chunk['number']}, {items}: {error['code']}: {error['detail']}")


@dead.command()
@click.argument("job_ids", metavar="ID", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@url_option
@as_json_option
def retry(job_ids: tuple[str, ...], every: bool, url: str | None, as_json: bool) -> None:
    """Run what failed of these jobs once more; what was done stays done."""
    if bool(job_ids) == every:
        raise click.UsageError("Give the ids of jobs, or --all.")
    with connect(url) as client:
        # All of them first: who is retried leaves the list.
        for job_id in job_ids or [job["id"] for job in client.jobs(dead="true", limit=100)]:
            try:
                show_job(client.retry(job_id), as_json)
            except Conflict as error:
                if not every:
                    raise
                click.echo(f"{job_id}  {error.message}", err=True)
