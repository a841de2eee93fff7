"""`revln webhooks`: what was told of jobs, and what came of it."""

from __future__ import annotations

import itertools
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.numbers import Count, Number
from revln.cli.output import print_json
from revln.terminal import visible

__all__ = ["webhooks"]

_STATES = ["pending", "delivered", "failed", "disabled"]
_TEST_S = 90.0  # a look every second, the lookup, the request; and a worker that is busy
_PAUSE_S = 0.3


@click.group()
def webhooks() -> None:
    """Show what was told of jobs, tell it again, test a receiver, look after the secret.

    \b
    Examples:
      revln webhooks test https://example.org/hook     does it arrive?
      revln webhooks list --state failed               what did not
      revln webhooks replay --since 6h                 tell it again
    """


@webhooks.command("list")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--state", type=click.Choice(_STATES), help="Only these; not with JOB.")
@click.option("--limit", type=Count(), default=20, show_default=True, help="How many.")
@url_option
@as_json_option
def list_command(job_id: str | None, state: str | None, limit: int, url: str | None, as_json: bool) -> None:
    """List what was told, of one job or of all, newest first."""
    if job_id and state:
        raise click.UsageError("--state is for the list of all; a job's list is short")
    with connect(url) as client:
        found = list(itertools.islice(client.webhooks(job_id, state=state, limit=min(limit, 100)), limit))
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console().print(_table(found))


def _table(found: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("id", "event", "state", "tries", "last", "next try", "url"):
        table.add_column(name, no_wrap=name in ("id", "event", "state"))
    for each in found:
        last = each["attempts"][-1] if each["attempts"] else {}
        table.add_row(
            each["id"],
            each["type"],
            each["state"],
            str(len(each["attempts"])),
            escape(visible(last.get("error") or str(last.get("status") or ""))),
            each["next_try_at"] or "",
            escape(visible(each["url"])),
        )
    return table


@webhooks.command("replay")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--id", "webhook_id", help="Only this one of the job, also if it was delivered.")
@click.option("--since", help="Without JOB: since then, as 6h, 3d, or 2026-11-24T03:00Z.")
@url_option
def replay_command(job_id: str | None, webhook_id: str | None, since: str | None, url: str | None) -> None:
    """Tell again what was not delivered, of one job or of all since a moment. The ids stay the same."""
    if bool(job_id) == bool(since):
        raise click.UsageError("give a JOB, or --since")
    if webhook_id and not job_id:
        raise click.UsageError("--id needs its JOB")
    with connect(url) as client:
        count = client.replay_webhooks(job_id, webhook_id, since=_moment(since) if since else None)
    click.echo(f"{count} due again")


def _moment(given: str) -> str:
    number, unit = given[:-1], given[-1:]
    seconds = {"m": 60, "h": 3_600, "d": 86_400}.get(unit)
    try:
        if seconds and number.isdecimal():
            return (datetime.now(UTC) - timedelta(seconds=int(number) * seconds)).isoformat()
        return datetime.fromisoformat(given).isoformat()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{given!r} is no moment; give 30m, 6h, 3d or 2026-11-24T03:00Z") from error


@webhooks.command("test")
@click.argument("receiver", metavar="URL")
@url_option
@as_json_option
def test_command(receiver: str, url: str | None, as_json: bool) -> int:
    """Send a signed test to a URL, and say what came of it. Exits with 1 if it was not delivered."""
    with connect(url) as client:
        sent = client.test_webhook(receiver)
        give_up_at = time.monotonic() + _TEST_S
        while not sent["settled_at"] and time.monotonic() < give_up_at:
            time.sleep(_PAUSE_S)
            sent = client.webhook(sent["id"])
    if as_json:
        print_json(sent)
    else:
        last = sent["attempts"][-1] if sent["attempts"] else {"status": None, "error": "no worker has tried it yet"}
        click.echo(f"{sent['id']}  {sent['state']}  {last['error'] or last['status']}")
    return 0 if sent["state"] == "delivered" else 1


@webhooks.command("secret")
@click.option("--rotate", is_flag=True, help="Put a new one in place; the former one signs too for the overlap.")
@click.option("--set", "given", is_flag=True, help="Ask for one to put in place: whsec_ and 24 to 64 bytes as base64.")
@click.option("--overlap", type=Number(0), help="Seconds that the former one goes on.  [default: a day]")
@url_option
@as_json_option
def secret_command(rotate: bool, given: bool, overlap: float | None, url: str | None, as_json: bool) -> None:
    """Print the secret that your receivers verify with.

    One of your own is read from the terminal or from standard input, never from the command line, which every user of
    the machine can read.
    """
    if overlap is not None and not (rotate or given):
        raise click.UsageError("--overlap is for --rotate and --set")
    with connect(url) as client:
        own = _asked_for() if given else None
        found = client.rotate_webhook_secret(own, overlap) if rotate or given else client.webhook_secrets()
    if as_json:
        print_json(found)
        return
    for each in found:
        click.echo(each["secret"] + (f"  until {each['expires_at']}" if each["expires_at"] else ""))


def _asked_for() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Secret", hide_input=True, err=True))
    return sys.stdin.buffer.readline().decode(errors="replace").strip()


@webhooks.command("enable")
@click.argument("receiver", metavar="URL")
@url_option
def enable_command(receiver: str, url: str | None) -> None:
    """Let a URL that answered 410 be told again; `revln webhooks replay` tells what it missed."""
    with connect(url) as client:
        client.enable_webhook(receiver)
    click.echo(f"{receiver} is enabled")
