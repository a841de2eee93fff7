"""What `revln index` tells of a whole collection: near-duplicates, models; and how a job of it ended."""

from __future__ import annotations

from typing import Any

import click

from revln.cli.jobs import (
    as_json_option,
    connect,
    priority_option,
    tell_errors,
    timeout_option,
    url_option,
    wait_option,
)
from revln.cli.numbers import Number
from revln.cli.output import print_json, show_job
from revln.cli.transfer import filter_option
from revln.client import Job, RevlnClient
from revln.jobs.index_schemas import DEDUP_SCORE
from revln.jobs.state import JobStatus

__all__ = ["duplicates", "ended", "generations", "migrate", "told"]

_SHOWN_MEMBERS = 10


@click.command(short_help="Report near-duplicates, as groups.")
@click.argument("name", metavar="NAME")
@click.option(
    "--min-score", type=Number(0.5, 1), default=DEDUP_SCORE, show_default=True,
    help="The least cosine of two items that are nearly the same.",
)  # fmt: skip
@filter_option
@click.option("--exact", is_flag=True, help="Compare every pair, also where an index could find them sooner.")
@click.option("--ids", "only_ids", is_flag=True, help="Print nothing but the ids that could go, one a line.")
@priority_option
@timeout_option
@url_option
@as_json_option
def duplicates(
    name: str,
    min_score: float,
    filter: dict[str, Any] | None,
    exact: bool,
    only_ids: bool,
    priority: str,
    timeout: float | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Report the items of a collection that are nearly the same, as groups.

    Items belong to one group if a chain of pairs as near as --min-score joins them. The one nearest to the group's mean
    stands for it; the others are shown with their cosine to it. Nothing is changed.

    \b
    Examples:
      revln index duplicates photos
      revln index duplicates photos --min-score 0.95 --json
      revln index duplicates photos --ids | revln index delete photos --ids-from -
    """
    asked: dict[str, Any] = {"collection": name, "operation": "duplicates", "min_score": min_score}
    asked |= {"filter": filter} if filter is not None else {}
    asked |= {"exact": True} if exact else {}
    with connect(url) as client:
        job = client.wait(client.submit("index", asked, priority=priority)["id"], timeout)
        if job["status"] != JobStatus.SUCCEEDED:
            return ended(job, as_json)
        if as_json:
            print_json(client.result(job["id"]))
            return 0
        report, *groups = (item for page in client.result_pages(job["id"]) for item in page["items"])
    if only_ids:
        for group in groups:
            for one in group["duplicates"]:
                click.echo(one["id"])
        return 0
    _show_duplicates(name, report["report"], groups)
    return 0


@click.command(short_help="Have it embedded by another model.")
@click.argument("name", metavar="NAME")
@click.option("--model", required=True, help="The model that is to embed it.")
@click.option("--allow-missing", is_flag=True, help="Leave out the items that it cannot embed.")
@priority_option
@wait_option
@timeout_option
@url_option
@as_json_option
def migrate(
    name: str,
    model: str,
    allow_missing: bool,
    priority: str,
    wait: bool,
    timeout: float | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Have a collection embedded by another model, and searched by it from then on.

    Searches and changes go on meanwhile. If items cannot be embedded (their pictures are gone, say), they are listed
    and nothing is changed, unless --allow-missing leaves them out. Stopped, it goes on where it was. The former vectors
    stay until `revln index generations NAME --delete former`, and a migration back takes them up again.

    \b
    Example:
      revln index migrate photos --model siglip
    """
    asked: dict[str, Any] = {"collection": name, "operation": "migrate"}
    asked |= {"allow_missing": True} if allow_missing else {}
    with connect(url) as client:
        job = client.submit("index", asked, model=model, priority=priority)
        if not wait:
            return ended(job, as_json)
        job = client.wait(job["id"], timeout)
        if as_json or job["status"] != JobStatus.SUCCEEDED:
            return told(client, job, as_json)
        done = next(client.result_pages(job["id"]))["items"][0]["migration"]
        click.echo(f"{name}: {done['items']} items by {done['model']} ({done['model_fingerprint']}), "
                   f"{done['missing']} left out; before by {done['former_model']}")  # fmt: skip
        tell_errors(client, job)
    return 0


@click.command(short_help="Show which models' vectors it has.")
@click.argument("name", metavar="NAME")
@click.option(
    "--delete", type=click.Choice(["former", "next", "returning"]), help="Give this one up, with its vectors."
)
@url_option
@as_json_option
def generations(name: str, delete: str | None, url: str | None, as_json: bool) -> None:
    """Show which models' vectors a collection has: the serving ones, and those before or after a migration."""
    with connect(url) as client:
        if delete:
            client.delete_generation(name, delete)
        found = client.generations(name)
    if as_json:
        print_json(found)
        return
    for one in found:
        of = f"model {one['model']} ({one['model_fingerprint']})" if one["model"] else "your own vectors"
        click.echo(f"{one['role']}  {one['count']} items  {of}")


def _show_duplicates(name: str, report: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    click.echo(
        f"{name}: {report['items']} items, {report['groups']} groups of near-duplicates, "
        f"{report['duplicates']} could go (cosine {report['min_score']:g} and more)"
    )
    for group in groups:
        click.echo(f"{group['id']}  {group['size']} items")
        for one in group["duplicates"][:_SHOWN_MEMBERS]:
            click.echo(f"  {one['score']:.4f}  {one['id']}")
        if (more := group["size"] - 1 - _SHOWN_MEMBERS) > 0:
            click.echo(f"  … {more} more (--json shows them)")


def ended(job: Job, as_json: bool) -> int:
    """Show a job; the exit status that fits it."""
    show_job(job, as_json)
    return 0 if not job["done"] or job["status"] == JobStatus.SUCCEEDED else 1


def told(client: RevlnClient, job: Job, as_json: bool) -> int:
    """Show a job that is done, and the first errors of its items."""
    if as_json:
        print_json(client.result(job["id"]))
    else:
        show_job(job, as_json)
        tell_errors(client, job)
    return 0 if job["status"] == JobStatus.SUCCEEDED and not job["counts"]["failed"] else 1
