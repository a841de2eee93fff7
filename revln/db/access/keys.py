"""API keys as rows. A secret is seen once, by whoever makes its key; the row has its SHA-256."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, and_, insert, inspect, or_, select, update

from revln.access import Caller, Scope, format_key, hash_secret, new_key_id, new_secret
from revln.db import tables
from revln.db.access.audit import record
from revln.db.engine import Database, db_now
from revln.db.upsert import insert_or_ignore
from revln.errors import Conflict, Forbidden, NotFound

__all__ = [
    "ApiKey",
    "KeyQuotas",
    "any_keys",
    "create_key",
    "find_key",
    "keys_exist",
    "list_keys",
    "revoke_key",
    "rotate_key",
    "set_used",
]


@dataclass(frozen=True, slots=True)
class KeyQuotas:
    """None: what the settings say."""

    max_queued_items: int | None = None
    max_queued_bytes: int | None = None
    requests_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of ``api_keys``, but for the hash. ``live``: neither revoked nor expired, by the database's clock."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    max_queued_items: int | None
    max_queued_bytes: int | None
    requests_per_s: float | None
    live: bool

    def caller(self) -> Caller:
        return Caller(
            self.tenant,
            self.id,
            self.scopes,
            key_id=self.id,
            max_queued_items=self.max_queued_items,
            max_queued_bytes=self.max_queued_bytes,
            requests_per_s=self.requests_per_s,
        )


_TABLE = tables.api_keys
_C = _TABLE.c
_LIVE = and_(_C.revoked_at.is_(None), or_(_C.expires_at.is_(None), _C.expires_at > db_now()))
_COLUMNS = [*(_C[field.name] for field in fields(ApiKey) if field.name != "live"), _LIVE.label("live")]


def _key(values: Mapping[Any, Any]) -> ApiKey:
    scopes = frozenset(Scope(one) for one in values["scopes"])
    return ApiKey(**{**values, "scopes": scopes, "live": bool(values["live"])})


def create_key(
    db: Database,
    by: Caller,
    *,
    tenant: str,
    name: str,
    scopes: Collection[Scope],
    expires_s: float | None = None,
    quotas: KeyQuotas = KeyQuotas(),
) -> tuple[ApiKey, str]:
    """Make a key, and the tenant if it is new; the key, and its text with the secret, which nobody sees again.

    A key has at most the quotas of the key that makes it, and ends when that does, if not before.

    Raises:
        Forbidden: more is asked for.
    """
    with db.write() as connection:
        quotas, until = _within_maker(connection, by, quotas)
        made, text = _insert(connection, tenant, name, scopes, expires_s, quotas, until)
        record(connection, by, "key.create", f"{made.id} ({', '.join(sorted(scopes))})", tenant)
    return made, text


def _insert(
    connection: Connection,
    tenant: str,
    name: str,
    scopes: Collection[Scope],
    expires_s: float | None,
    quotas: KeyQuotas,
    until: float | None,
) -> tuple[ApiKey, str]:
    """``until``: when it ends at the latest, in seconds since 1970."""
    key_id, secret = new_key_id(), new_secret()
    now = connection.scalar(select(db_now()))
    assert now is not None
    insert_or_ignore(connection, tables.tenants, [{"name": tenant, "created_at": now}], key=("name",))
    connection.execute(
        insert(_TABLE).values(
            id=key_id,
            tenant=tenant,
            name=name,
            sha256=hash_secret(secret),
            scopes=sorted(scopes),
            created_at=now,
            expires_at=min((at for at in (until, expires_s and now + expires_s) if at is not None), default=None),
            max_queued_items=quotas.max_queued_items,
            max_queued_bytes=quotas.max_queued_bytes,
            requests_per_s=quotas.requests_per_s,
        )
    )
    row = connection.execute(select(*_COLUMNS).where(_C.id == key_id)).one()
    return _key(row._mapping), format_key(key_id, secret)


def _within_maker(connection: Connection, by: Caller, asked: KeyQuotas) -> tuple[KeyQuotas, float | None]:
    """What of ``asked`` the maker can give: its own where nothing is named; and its own end."""
    maker = find_key(connection, by.key_id) if by.key_id is not None else None
    if maker is None:
        return asked, None
    given = {}
    for field in fields(KeyQuotas):
        own, wanted = getattr(maker[0], field.name), getattr(asked, field.name)
        if own is not None and wanted is not None and wanted > own:
            raise Forbidden(f"{field.name}={wanted:g} is asked for; key {by.key_id} has {own:g} itself. Ask for less.")
        given[field.name] = own if wanted is None else wanted
    return KeyQuotas(**given), maker[0].expires_at


def find_key(connection: Connection, key_id: str) -> tuple[ApiKey, str] | None:
    """A key, live or not, and the SHA-256 of its secret."""
    row = connection.execute(select(*_COLUMNS, _C.sha256).where(_C.id == key_id)).one_or_none()
    if row is None:
        return None
    values = dict(row._mapping)
    sha256: str = values.pop("sha256")
    return _key(values), sha256


def any_keys(connection: Connection) -> bool:
    """Whether a key was ever made; one that was revoked counts, so that revoking the last opens nothing."""
    return connection.execute(select(_C.id).limit(1)).one_or_none() is not None


def keys_exist(db: Database) -> bool:
    """The same of a database that may not have been migrated yet."""
    with db.read() as connection:
        return inspect(connection).has_table(_TABLE.name) and any_keys(connection)


def list_keys(connection: Connection, tenant: str | None) -> list[ApiKey]:
    """Of one tenant or of all, oldest first."""
    query = select(*_COLUMNS).order_by(_C.tenant, _C.created_at, _C.id)
    if tenant is not None:
        query = query.where(_C.tenant == tenant)
    return [_key(row._mapping) for row in connection.execute(query)]


def revoke_key(db: Database, by: Caller, key_id: str, tenant: str | None) -> ApiKey:
    """End a key now; again is fine. ``tenant``: whose it must be, None for anybody's. Raises NotFound."""
    with db.write() as connection:
        found = _lock(connection, key_id, tenant)
        if found.revoked_at is None:
            connection.execute(update(_TABLE).where(_C.id == key_id).values(revoked_at=db_now()))
            record(connection, by, "key.revoke", key_id, found.tenant)
        return _key(connection.execute(select(*_COLUMNS).where(_C.id == key_id)).one()._mapping)


def rotate_key(db: Database, by: Caller, key_id: str, tenant: str | None, overlap_s: float) -> tuple[ApiKey, str]:
    """A new key that may do what the old one may, which ends in ``overlap_s`` seconds if not before.

    The new one lasts as long from now on as the old one was made to last, but no longer than the caller's own key.

    Raises:
        Forbidden: the old one has larger quotas than the caller's own key, which would get its successor.
        NotFound: there is no such key.
        Conflict: it has ended, and what nobody uses any more needs no successor.
    """
    with db.write() as connection:
        old = _lock(connection, key_id, tenant)
        if not old.live:
            raise Conflict(f"Key {key_id} was revoked or has expired; make a new one.")
        lasts_s = old.expires_at - old.created_at if old.expires_at is not None else None
        quotas = KeyQuotas(old.max_queued_items, old.max_queued_bytes, old.requests_per_s)
        quotas, until = _within_maker(connection, by, quotas)
        made, text = _insert(connection, old.tenant, old.name, old.scopes, lasts_s, quotas, until)
        ends_at = made.created_at + overlap_s
        if old.expires_at is None or ends_at < old.expires_at:
            connection.execute(update(_TABLE).where(_C.id == key_id).values(expires_at=ends_at))
        record(connection, by, "key.rotate", f"{key_id} → {made.id}", old.tenant)
    return made, text


def _lock(connection: Connection, key_id: str, tenant: str | None) -> ApiKey:
    query = select(*_COLUMNS).where(_C.id == key_id).with_for_update()
    if tenant is not None:
        query = query.where(_C.tenant == tenant)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"There is no key {key_id[:40]!r}. revln keys list shows those there are.")
    return _key(row._mapping)


def set_used(db: Database, ago_s: Mapping[str, float]) -> None:
    """Note when keys were last used: so many seconds ago."""
    with db.write() as connection:
        for key_id, seconds in sorted(ago_s.items()):
            connection.execute(update(_TABLE).where(_C.id == key_id).values(last_used_at=db_now() - seconds))
