"""The commands of a client: hand in a job, look at jobs and collections.

One command for each kind of job is made from ``KINDS``.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from revln.cli.numbers import Count, Number
from revln.cli.output import jobs_table, print_json, show_collections, show_job
from revln.client import Job, RevlnClient
from revln.errors import RevlnError
from revln.jobs.kinds import KINDS, Priority
from revln.jobs.state import JobStatus
from revln.settings import Settings

__all__ = [
    "EXAMPLES",
    "as_json_option",
    "cancel",
    "collection",
    "collections",
    "connect",
    "job",
    "jobs",
    "kind_command",
    "kind_help",
    "priority_option",
    "read_input",
    "tell_errors",
    "timeout_option",
    "url_option",
    "wait_option",
    "webhook_option",
]

PRIORITIES = [each.value for each in Priority]
_SHOWN_ERRORS = 20
_PATIENCE_S, _LONG_PATIENCE_S = 5.0, 600.0
EXAMPLES = {
    "embed": ['{"items": [{"text": "a dog in the snow"}]}', "@items.json --no-wait"],
    "index": ['{"collection": "photos", "items": [{"id": "1", "image": {"sha256": "…"}}]}'],
    "search": ['{"collection": "photos", "queries": [{"text": "a dog in the snow"}], "k": 5}'],
    "caption": ['{"items": [{"image": {"sha256": "…"}}], "collection": "photos"}'],
}

url_option = click.option(
    "--url", help="Where the API listens.  [default: REVLN_PUBLIC_URL, else REVLN_API_HOST and _PORT]"
)
priority_option = click.option(
    "--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Which queue."
)
wait_option = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait and print the result.")
webhook_option = click.option("--webhook", metavar="URL", help="Where to tell of its start and its end.")
timeout_option = click.option("--timeout", type=Number(min=0), help="Wait no longer than this many seconds.")
_DEADLINES = {
    "--deadline": "It expires if it is not done so long after it was handed in.",
    "--starting-deadline": "It expires if it has not begun by then.",
    "--active-deadline": "It expires if it is not done so long after it began.",
}
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's own JSON, for programs.")


def connect(url: str | None, *, long_work: bool = False) -> RevlnClient:
    """A client of ``url``, or of where the settings say that the API is; the key comes from the settings.

    Someone waits at a terminal: it says soon that nobody answers. In the middle of long work it sits out a restart of
    the server, and waits for as long as a busy one asks.
    """
    settings = Settings.from_env()
    if not url:
        host = "127.0.0.1" if settings.api_host in ("0.0.0.0", "::") else settings.api_host  # noqa: S104 - a comparison
        url = settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.api_port}"
    return RevlnClient(
        url,
        settings.api_key.get_secret_value() or None,
        retry_for_s=_LONG_PATIENCE_S if long_work else _PATIENCE_S,
        as_asked=long_work,
        on_wait=_told_waits() if long_work else None,
    )


def _told_waits() -> Callable[[float, RevlnError], object]:
    """Say each reason to wait once, however many threads wait for it."""
    said: set[str] = set()

    def tell(seconds: float, error: RevlnError) -> None:
        if error.message not in said:
            said.add(error.message)
            click.echo(f"the server asks to wait {seconds:g} s: {error.message}", err=True)

    return tell


def kind_command(name: str) -> click.Command:
    """The command that hands in a job of one kind."""
    kind = KINDS[name]

    def run(
        body: str,
        model: str | None,
        priority: str,
        webhook: str | None,
        wait: bool,
        timeout: float | None,
        url: str | None,
        as_json: bool,
        **deadlines: Any,
    ) -> int:
        given = read_input(body)
        with connect(url) as client:
            hook = {"url": webhook} if webhook else None
            found = client.submit(name, given, model=model, priority=priority, webhook=hook, **deadlines)
            if not wait:
                show_job(found, as_json)
                return 0
            done = client.wait(found["id"], timeout)
            if done["status"] != JobStatus.SUCCEEDED:
                show_job(done, as_json)
                if not as_json:
                    tell_errors(client, done)
                return 1
            print_json(client.result(done["id"]))
            return 0

    options: list[Callable[[Any], Any]] = [
        click.argument("body", metavar="INPUT"),
        click.option("--model", help="The model to use.  [default: the server's]"),
        priority_option,
        webhook_option,
        *(
            click.option(
                option,
                f"{option.removeprefix('--').replace('-', '_')}_s",
                type=Number(min=0),
                metavar="SECONDS",
                help=text,
            )
            for option, text in _DEADLINES.items()
        ),
        wait_option,
        timeout_option,
        url_option,
        as_json_option,
    ]
    callback: Any = run
    for option in reversed(options):
        callback = option(callback)
    return click.command(name, help=kind_help(name, kind.input))(callback)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--wait", type=Number(min=0), help="Wait up to this many seconds for it to be done.")
@click.option("--result", "with_result", is_flag=True, help="Print its result; readable while it runs.")
@url_option
@as_json_option
def job(job_id: str, wait: float | None, with_result: bool, url: str | None, as_json: bool) -> None:
    """Show one job, and wait for it if asked to."""
    with connect(url) as client:
        found = client.wait(job_id, wait) if wait else client.job(job_id)
        if with_result:
            print_json(client.result(job_id))
        else:
            show_job(found, as_json)


@click.command()
@click.option("--status", type=click.Choice([each.value for each in JobStatus]), help="Only these.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only these.")
@click.option("--limit", type=Count(), default=20, show_default=True, help="How many.")
@url_option
@as_json_option
def jobs(status: str | None, kind: str | None, limit: int, url: str | None, as_json: bool) -> None:
    """List jobs, newest first."""
    with connect(url) as client:
        found = list(itertools.islice(client.jobs(status=status, kind=kind, limit=min(limit, 100)), limit))
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console().print(jobs_table(found))


@click.command()
@click.argument("job_id", metavar="ID")
@url_option
@as_json_option
def cancel(job_id: str, url: str | None, as_json: bool) -> None:
    """Stop a job; what it has finished stays readable."""
    with connect(url) as client:
        show_job(client.cancel(job_id), as_json)


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--model", help="The model whose vectors it holds, for good.  [default: the server's]")
@click.option("--dim", type=click.IntRange(1), help="It holds vectors of your own, of so many numbers, and no model's.")
@click.option("--delete", "delete", is_flag=True, help="Delete it, with everything in it.")
@url_option
@as_json_option
def collection(name: str, model: str | None, dim: int | None, delete: bool, url: str | None, as_json: bool) -> None:
    """Make a collection, or show it if it is there.

    `revln index` fills it and `revln search` looks into it.
    """
    with connect(url) as client:
        if delete:
            client.delete_collection(name)
            return
        show_collections([client.create_collection(name, model, dim=dim)], as_json)


@click.command()
@url_option
@as_json_option
def collections(url: str | None, as_json: bool) -> None:
    """List the collections."""
    with connect(url) as client:
        show_collections(client.collections(), as_json)


def read_input(given: str) -> dict[str, Any]:
    """JSON from the argument, from ``@file`` or from standard input."""
    text: str | bytes
    if given == "-":
        text, where = sys.stdin.buffer.read(), "standard input"
    elif given.startswith("@"):
        where = given[1:]
        try:
            text = Path(where).read_bytes()
        except OSError as error:
            raise click.BadParameter(f"cannot read {where}: {error}") from error
    else:
        text, where = given, "INPUT"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{where} is not JSON: {error}. Give JSON, @file.json, or - for stdin.") from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"{where} must be a JSON object, as in {EXAMPLES['embed'][0]}")
    return value


def tell_errors(client: RevlnClient, job: Job) -> None:
    """Print the first errors of a job's items to standard error."""
    left = min(job["counts"]["failed"], _SHOWN_ERRORS)
    for page in client.result_pages(job["id"]) if left else ():
        for item in page.get("items") or page["results"]:
            if item.get("error") and left:
                left -= 1
                named = item.get("id") or item.get("index", item.get("query"))
                click.echo(f"  {named}: {item['error']['detail']}", err=True)


def kind_help(name: str, schema: type[BaseModel]) -> str:
    """The help of the command that hands in a job of one kind."""
    lines = [
        (schema.__doc__ or "").replace("``", "").strip(),
        "",
        "INPUT is JSON, @file.json, or - for standard input.",
    ]
    lines += ["", "\b", "Its fields:"]
    for field, info in schema.model_fields.items():
        default = "" if info.is_required() or info.default is None else f"  [default: {info.default}]"
        lines.append(f"  {field}{' (required)' if info.is_required() else ''}{default}")
    if name in EXAMPLES:
        lines += ["", "\b", "Examples:"]
        lines += [f"  revln {name} {each}" if each[0] != "{" else f"  revln {name} '{each}'" for each in EXAMPLES[name]]
    return "\n".join(lines)
