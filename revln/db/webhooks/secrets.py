"""The secrets that sign a tenant's webhooks: one that holds, and for a while those that it replaced.

A tenant and not a URL has them, because jobs name URLs of their own (`…/done?order=17`) and a receiver must know its
secret before the first of them. A signature needs the secret itself, so no hash of it would do here.
"""

from __future__ import annotations

import base64
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from revln.access import Caller
from revln.db import tables
from revln.db.access import audit
from revln.db.engine import Database, db_now
from revln.errors import Conflict

__all__ = ["WebhookSecret", "rotate_secret", "show_secrets", "webhook_secrets"]

_PREFIX = "whsec_"
_BYTES = 32  # the specification wants 24 to 64
_MOST = 4  # signatures in one header; rotating more often than that within the overlap gives up the oldest


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    secret: str = field(repr=False)
    created_at: float
    expires_at: float | None


def webhook_secrets(db: Database, tenant: str) -> list[WebhookSecret]:
    """Those that hold now, newest first; made if the tenant had none."""
    with db.read() as connection:
        found = _valid(connection, tenant)
    if found:
        return found
    with suppress(IntegrityError), db.write() as connection:  # somebody else made it just now
        # The number first: whoever is quicker has either been seen by the time of the look, or has taken it.
        number = _next_number(connection, tenant)
        if not _valid(connection, tenant):
            _put(connection, tenant, number, _random_secret())
    with db.read() as connection:
        return _valid(connection, tenant)


def show_secrets(db: Database, by: Caller) -> list[WebhookSecret]:
    """The caller's, to be seen: whoever has them can sign in our name, so that is recorded."""
    found = webhook_secrets(db, by.tenant)
    with db.write() as connection:
        audit.record(connection, by, "webhook.reveal", "secret")
    return found


def rotate_secret(db: Database, by: Caller, secret: str | None, overlap_s: float) -> list[WebhookSecret]:
    """Put a secret (a random one, if none is given) before the caller's others, which hold for ``overlap_s`` more.

    Raises:
        Conflict: somebody else did so at the same moment.
    """
    table = tables.webhook_secrets
    mine = table.c.tenant == by.tenant
    try:
        with db.write() as connection:
            connection.execute(delete(table).where(mine, table.c.expires_at < db_now()))
            until = db_now() + overlap_s
            longer = or_(table.c.expires_at.is_(None), table.c.expires_at > until)
            connection.execute(update(table).where(mine, longer).values(expires_at=until))
            _put(connection, by.tenant, _next_number(connection, by.tenant), secret or _random_secret())
            audit.record(connection, by, "webhook.rotate", "secret")
            return _valid(connection, by.tenant)
    except IntegrityError as err:
        raise Conflict("Somebody else replaced the secret just now. Read it before you try again.") from err


def _next_number(connection: Connection, tenant: str) -> int:
    columns = tables.webhook_secrets.c
    return (connection.scalar(select(func.max(columns.number)).where(columns.tenant == tenant)) or 0) + 1


def _put(connection: Connection, tenant: str, number: int, secret: str) -> None:
    values = {"tenant": tenant, "number": number, "secret": secret, "created_at": db_now()}
    connection.execute(insert(tables.webhook_secrets).values(values))


def _valid(connection: Connection, tenant: str) -> list[WebhookSecret]:
    columns = tables.webhook_secrets.c
    rows = connection.execute(
        select(columns.secret, columns.created_at, columns.expires_at)
        .where(columns.tenant == tenant, or_(columns.expires_at.is_(None), columns.expires_at > db_now()))
        .order_by(columns.number.desc())
        .limit(_MOST)
    )
    return [WebhookSecret(row.secret, row.created_at, row.expires_at) for row in rows]


def _random_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
