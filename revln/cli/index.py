"""`revln index`: change a collection, report on it, move it between files and models.

With JSON instead of a sub-command it hands in any index job, as the commands of the other kinds do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from revln.cli.index_reports import duplicates, ended, generations, migrate, told
from revln.cli.jobs import (
    as_json_option,
    connect,
    kind_command,
    kind_help,
    priority_option,
    timeout_option,
    url_option,
    wait_option,
)
from revln.cli.snapshots import build_command, rollback_command, snapshots_command
from revln.cli.transfer import export_command, filter_option, import_command
from revln.client import RevlnClient
from revln.jobs.index_schemas import IndexInput
from revln.jobs.state import JobStatus

__all__ = ["index"]

_IDS_TOGETHER = 10_000  # the most that one job takes


class _JsonOrCommand(click.Group):
    """A group whose first argument may also be a job's input."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = not args or args[0] in ctx.help_option_names or re.fullmatch(r"[a-z][a-z-]*", args[0])
        return super().parse_args(ctx, args if named else [_JSON, *args])

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for name in self.commands if name != _JSON]


_JSON = "json"  # what the command that takes JSON is called inside


@click.group(
    cls=_JsonOrCommand,
    help=kind_help("index", IndexInput) + "\n\nOr one of the commands below, which need no JSON.",
    subcommand_metavar="INPUT | COMMAND [ARGS]...",
)
def index() -> None:
    pass


index.add_command(kind_command("index"), _JSON)
index.add_command(import_command)
index.add_command(export_command)
index.add_command(duplicates)
index.add_command(migrate)
index.add_command(generations)
index.add_command(build_command)
index.add_command(snapshots_command)
index.add_command(rollback_command)


@index.command(short_help="Write items, or replace them.")
@click.argument("name", metavar="NAME")
@click.argument("items", metavar="FILE|SHA256|-")
@click.option("--vectors-of", metavar="FINGERPRINT", help="The model that made the vectors which the items bring.")
@priority_option
@wait_option
@timeout_option
@url_option
@as_json_option
def upsert(
    name: str,
    items: str,
    vectors_of: str | None,
    priority: str,
    wait: bool,
    timeout: float | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Write items into a collection; those whose id is there already are replaced.

    The items are JSON lines: a file, standard input (-), or the SHA-256 of what was uploaded before. A line is
    {"id"?, "image"?: {"sha256"}, "text"?, "vector"?, "metadata"?}.

    \b
    Examples:
      revln upload --manifest holiday/        and then, with the name that it prints last
      revln index upsert photos 9741129e…
      echo '{"id": "n-1", "text": "a dog runs on the beach"}' | revln index upsert photos -
    """
    asked: dict[str, Any] = {"collection": name, "operation": "upsert"}
    if vectors_of:
        asked["vectors_of"] = vectors_of
    with connect(url) as client:
        asked["manifest"] = {"sha256": _manifest(client, items)}
        job = client.submit("index", asked, priority=priority)
        return ended(job, as_json) if not wait else told(client, client.wait(job["id"], timeout), as_json)


@index.command(short_help="Delete items, by id or by filter.")
@click.argument("name", metavar="NAME")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--ids-from", type=click.File("rb"), help="A file of ids, one a line; - is standard input.")
@filter_option
@priority_option
@wait_option
@timeout_option
@url_option
@as_json_option
def delete(
    name: str,
    ids: tuple[str, ...],
    ids_from: IO[bytes] | None,
    filter: dict[str, Any] | None,
    priority: str,
    wait: bool,
    timeout: float | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Delete items by their ids, or all that pass a filter.

    \b
    Examples:
      revln index delete photos dsc-1 dsc-2
      revln index delete photos --filter '{"year": {"lt": 2010}}'
      revln index duplicates photos --ids | revln index delete photos --ids-from -
    """
    wanted = [*ids, *_lines(ids_from)]
    if (filter is None) == (not wanted and ids_from is None):
        raise click.UsageError("Give either ids or --filter.")
    asked: dict[str, Any] = {"collection": name, "operation": "delete"}
    parts = [{**asked, "filter": filter}] if filter is not None else [
        {**asked, "ids": wanted[at : at + _IDS_TOGETHER]} for at in range(0, len(wanted), _IDS_TOGETHER)
    ]  # fmt: skip
    with connect(url) as client:
        jobs = [client.submit("index", part, priority=priority) for part in parts]
        if not wait:
            return max((ended(job, as_json) for job in jobs), default=0)
        jobs = [client.wait(job["id"], timeout) for job in jobs]
        if filter is not None and not as_json and jobs[0]["status"] == JobStatus.SUCCEEDED:
            click.echo(f"{name}: {client.result(jobs[0]['id'])['items'][0]['deleted']} items deleted")
            return 0
        return max((told(client, job, as_json) for job in jobs), default=0)


def _lines(file: IO[bytes] | None) -> Iterator[str]:
    for number, line in enumerate(file or (), start=1):
        try:
            found = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as err:
            raise click.BadParameter(f"line {number} of --ids-from is not UTF-8: {err}") from err
        if found.strip():
            yield found


def _manifest(client: RevlnClient, items: str) -> str:
    """The SHA-256 of an uploaded manifest: given, or of what is uploaded now."""
    if items == "-":
        return str(client.upload_manifest(iter(sys.stdin.buffer))["sha256"])
    if not Path(items).exists() and re.fullmatch(r"[0-9a-f]{64}", items):
        return items
    try:
        return str(client.upload_manifest(_Blocks(items))["sha256"])
    except OSError as err:
        raise click.BadParameter(f"cannot read {items}: {err}") from err


class _Blocks:
    """A file's bytes, which may be gone through again."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with Path(self._path).open("rb") as file:
            while block := file.read(2**20):
                yield block
