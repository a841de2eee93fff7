"""How much a tenant may have stored, and all of them together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import func, select

from revln.db import tables
from revln.db.engine import Database
from revln.errors import StorageFull

__all__ = ["NO_QUOTAS", "StorageQuotas", "StoredBytes"]

_FRESH_S = 5.0  # a million uploads take the database a second to add up


@dataclass(frozen=True, slots=True)
class StorageQuotas:
    """In bytes; 0: no limit."""

    tenant_bytes: int = 0
    all_bytes: int = 0


NO_QUOTAS = StorageQuotas()


class StoredBytes:
    """Counted anew every few seconds, and in between by what this process adds; one for a process.

    So several processes together may pass a quota by what comes in within a few seconds.
    """

    def __init__(self, db: Database, quotas: StorageQuotas) -> None:
        self._db, self._quotas = db, quotas
        self._lock = Lock()
        self._counted: dict[str | None, tuple[float, int]] = {}

    @property
    def limited(self) -> bool:
        return bool(self._quotas.tenant_bytes or self._quotas.all_bytes)

    def take(self, tenant: str, more_bytes: int) -> None:
        """Count what is about to be stored. Raises StorageFull if a quota has no room for it."""
        limits = {tenant: self._quotas.tenant_bytes, None: self._quotas.all_bytes}
        with self._lock:
            found = {whose: self._count(whose) for whose, most in limits.items() if most}
            for whose, (_, stored) in found.items():
                if stored + more_bytes > limits[whose]:
                    raise StorageFull(_full(whose, stored, more_bytes, limits[whose]))
            for whose, (at, stored) in found.items():
                self._counted[whose] = (at, stored + more_bytes)

    def _count(self, tenant: str | None) -> tuple[float, int]:
        known = self._counted.get(tenant)
        if known is not None and time.monotonic() - known[0] < _FRESH_S:
            return known
        columns = tables.uploads.c
        query = select(func.coalesce(func.sum(columns.size_bytes), 0))
        now = time.monotonic()
        with self._db.read() as connection:
            stored = connection.scalar(query if tenant is None else query.where(columns.tenant == tenant))
        return now, int(stored or 0)


def _full(tenant: str | None, stored: int, more: int, most: int) -> str:
    whose, setting = ("in all", "REVLN_MAX_STORED_BYTES")
    if tenant is not None:
        whose, setting = f"of tenant {tenant}", "REVLN_TENANT_MAX_STORED_BYTES"
    return (
        f"{stored:,} bytes {whose} are stored and this is {more:,}; at most {most:,} may be ({setting}). Delete what "
        "is not needed: DELETE /v1/images/{sha256} and /v1/manifests/{sha256}."
    )
