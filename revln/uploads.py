"""A tenant's stored bytes: put there and looked for through here, by the API and by workers alike.

Blobs are named by their content and kept once, so a name alone says nothing about who may have it. What was stored
before there were tenants has no row; it is the default tenant's, which gets its row when it first names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from revln.access import DEFAULT_TENANT
from revln.blobs import BlobStore
from revln.db.engine import Database
from revln.db.uploads import UploadKind, add_uploads, default_tenant_since, used_uploads

__all__ = ["Uploads"]


class Uploads:
    """One for a process; shared by its threads."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db, self._blobs = db, blobs
        self._since: float | None = None

    def put(self, tenant: str, data: bytes) -> tuple[str, bool]:
        """Store a picture for a tenant; its SHA-256, and whether it is new to the tenant."""
        sha256 = self.store(data)
        return sha256, bool(self.add(tenant, "image", {sha256: len(data)}))

    def store(self, data: bytes) -> str:
        """Store a picture that is nobody's until it is added; its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if (size := self._old_size(sha256, "image")) is not None:
            # Putting it again makes it young, and the default tenant could no longer be known as its owner.
            self.add(DEFAULT_TENANT, "image", {sha256: size})
        # Also if it is there: a collector that has seen nobody own it leaves alone what was put since.
        return self._blobs.put(data, "images")

    def add(self, tenant: str, kind: UploadKind, sizes: Mapping[str, int]) -> set[str]:
        """Give a tenant blobs that have just been stored; those that are new to it."""
        return add_uploads(self._db, tenant, kind, sizes)

    def of(self, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> set[str]:
        """Those of the blobs that the tenant has."""
        found = used_uploads(self._db, tenant, kind, sha256s)
        if tenant == DEFAULT_TENANT and (missing := set(sha256s) - found):
            old = {sha256: size for sha256 in missing if (size := self._old_size(sha256, kind)) is not None}
            add_uploads(self._db, tenant, kind, old)
            found |= set(old)
        return found

    def _old_size(self, sha256: str, kind: UploadKind) -> int | None:
        """Of a blob that was there before there were tenants."""
        if self._since is None:
            with self._db.read() as connection:
                self._since = default_tenant_since(connection)
        info = self._blobs.info(sha256, f"{kind}s")
        return info.size_bytes if info is not None and info.modified.timestamp() < self._since else None
