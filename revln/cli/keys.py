"""`revln keys` and `revln audit`: on the database itself, so that who runs it can never be locked out."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from revln.access import DEFAULT_TENANT, TENANT_PATTERN, Caller, Scope
from revln.cli.numbers import Number
from revln.cli.output import print_json
from revln.db.access import keys as db_keys
from revln.db.access.audit import list_audit
from revln.db.access.keys import ApiKey, KeyQuotas
from revln.db.engine import Database
from revln.settings import Settings

__all__ = ["audit", "keys"]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_S = 36_500 * 86_400  # further than that no calendar of ours goes


class _Span(click.ParamType[float]):
    """A length of time as 90d, 12h, 30m or 45s."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", value)
        if found is None or (seconds := float(found[1]) * _UNITS[found[2]]) > _LONGEST_S:
            self.fail(f"{value!r} is not a time of up to 100 years: write 90d, 12h, 30m or 45s.", param, ctx)
        return seconds


def _tenant(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(TENANT_PATTERN, value):
        raise click.BadParameter(f"{value!r}: lower-case letters, digits, - and _, 64 at most.")
    return value


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _tenant_option(**more: Any) -> Callable[[Any], Any]:
    return click.option("--tenant", callback=_tenant, **more)


@contextmanager
def _database() -> Iterator[Database]:
    database = Database(Settings.from_env().resolved_database_url)
    try:
        yield database
    finally:
        database.close()


def _by() -> Caller:
    """Whoever can open the database; the audit log has their name on this machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return Caller(DEFAULT_TENANT, f"cli:{user}"[:128], frozenset(Scope))


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys.

    These commands open the database (REVLN_DATABASE_URL or the data folder) and need no key themselves. Every API
    process knows of a change within seconds. See docs/access.md.

    \b
    Examples:
      revln keys create --name ingest --scope submit --tenant zoo --expires 90d
      revln keys rotate 5f0e8a7d9c3b2a10 --overlap 1d
      revln keys revoke 5f0e8a7d9c3b2a10
    """


@keys.command()
@click.option("--name", required=True, help="To know it by in a listing.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=("submit", "read"),
    show_default=True,
    help="What it may do; give it several times.",
)
@_tenant_option(default=DEFAULT_TENANT, show_default=True, help="Whose it is; made if it is new.")
@click.option("--expires", type=_Span(), help="After how long it is refused, as in 90d.")
@click.option("--max-queued-items", type=click.IntRange(min=1), help="Most items of it waiting.  [the settings']")
@click.option("--max-queued-bytes", type=click.IntRange(min=1), help="Most bytes of it waiting.  [the settings']")
@click.option("--requests-per-s", type=Number(min=0, min_open=True), help="Its rate.  [the settings']")
@_json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    tenant: str,
    expires: float | None,
    max_queued_items: int | None,
    max_queued_bytes: int | None,
    requests_per_s: float | None,
    as_json: bool,
) -> None:
    """Make a key and print it: this once, because only a hash of it is kept."""
    quotas = KeyQuotas(max_queued_items, max_queued_bytes, requests_per_s)
    with _database() as database:
        made = db_keys.create_key(
            database, _by(), tenant=tenant, name=name, scopes={Scope(one) for one in scopes}, expires_s=expires,
            quotas=quotas,
        )  # fmt: skip
    _show_new(*made, as_json)


@keys.command("list")
@_tenant_option(help="Only this one's.")
@_json_option
def list_all(tenant: str | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    with _database() as database, database.read() as connection:
        found = db_keys.list_keys(connection, tenant)
    if as_json:
        print_json([_plain(key) for key in found])
        return
    for key in found:
        used = f"used {_when(key.last_used_at)}" if key.last_used_at else "never used"
        ends = f"expires {_when(key.expires_at)}" if key.expires_at else "does not expire"
        state = ends if key.live else ("revoked" if key.revoked_at else "expired")
        click.echo(f"{key.id}  {key.tenant}  {key.name}  {','.join(sorted(key.scopes))}  {state}, {used}")


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """End a key now. Every API process refuses it within seconds."""
    with _database() as database:
        db_keys.revoke_key(database, _by(), key_id, None)
    click.echo(f"{key_id} is revoked")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--overlap", type=_Span(), default="1d", show_default=True, help="How long the old one goes on.")
@_json_option
def rotate(key_id: str, overlap: float, as_json: bool) -> None:
    """Make a key's successor and print it; both are taken until the overlap is over."""
    with _database() as database:
        made = db_keys.rotate_key(database, _by(), key_id, None, overlap)
    _show_new(*made, as_json)


@click.command()
@_tenant_option(help="Only this one's.")
@click.option("--action", help="Only this, as in job.cancel or key.create.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, newest first.")
@_json_option
def audit(tenant: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """Show who did what: submitted, cancelled, deleted, changed keys."""
    with _database() as database, database.read() as connection:
        found = list_audit(connection, tenant, limit, action=action)
    if as_json:
        shown = ("id", "who", "tenant", "action", "what", "address")
        rows = [{**{name: getattr(one, name) for name in shown}, "at": _when(one.created_at)} for one in found]
        print_json(rows)
        return
    for one in found:
        where = f" from {one.address}" if one.address else ""
        click.echo(f"{_when(one.created_at)}  {one.tenant}  {one.who}  {one.action}  {one.what}{where}")


def _show_new(key: ApiKey, text: str, as_json: bool) -> None:
    if as_json:
        print_json({**_plain(key), "key": text})
        return
    click.echo(text)
    ends = f", until {_when(key.expires_at)}" if key.expires_at else ""
    click.echo(
        f"{key.id}: {', '.join(sorted(key.scopes))} of tenant {key.tenant}{ends}. Keep it: not shown again.", err=True
    )


def _plain(key: ApiKey) -> dict[str, Any]:
    times = {name: _when(getattr(key, name)) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    named = ("id", "tenant", "name", "live", "max_queued_items", "max_queued_bytes", "requests_per_s")
    return {**{name: getattr(key, name) for name in named}, "scopes": sorted(key.scopes), **times}


def _when(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
