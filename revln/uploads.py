"""A tenant's stored bytes: put there, looked for and taken away through here, by the API and by workers alike.

Blobs are named by their content and kept once, so a name alone says nothing about who may have it. What was stored
before there were tenants has no row; it is the default tenant's, which gets its row when it first names it, or when the
bytes are first looked at for being nobody's.

The row comes first and goes first. A crash in between leaves a row without bytes, of an upload that nobody was told of,
or bytes without a row, which are collected; never a blob that somebody may name and that is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import get_args

from revln.access import DEFAULT_TENANT, Caller
from revln.blobs import BlobInfo, BlobStore, BlobWriter
from revln.db.engine import Database
from revln.db.uploads.quotas import NO_QUOTAS, StorageQuotas, StoredBytes
from revln.db.uploads.removal import delete_upload, expire_uploads, ownerless, remove_ownerless
from revln.db.uploads.uploads import UploadKind, add_uploads, default_tenant_since, used_uploads

__all__ = ["Uploads"]

_TOGETHER = 500  # blobs whose owners are looked up at once


class Uploads:
    """One for a process; shared by its threads."""

    def __init__(self, db: Database, blobs: BlobStore, quotas: StorageQuotas = NO_QUOTAS) -> None:
        self._db, self._blobs = db, blobs
        self._stored = StoredBytes(db, quotas)
        self._since: float | None = None

    def put(self, tenant: str, pictures: Iterable[bytes], key_id: str | None = None) -> set[str]:
        """Store pictures for a tenant; the SHA-256 of those that are new to it.

        ``key_id``: the key that they came with, if one did. Raises Unauthorized if it has ended, StorageFull.
        """
        found = {hashlib.sha256(data).hexdigest(): data for data in pictures}
        self._take(tenant, "image", {sha256: len(data) for sha256, data in found.items()})
        self._adopt("image", found)
        sizes = {sha256: len(data) for sha256, data in found.items()}
        new = add_uploads(self._db, tenant, "image", sizes, key_id)
        for data in found.values():
            self._blobs.put(data, "images")
        return new

    def commit(self, tenant: str, kind: UploadKind, writer: BlobWriter, key_id: str | None = None) -> tuple[str, int]:
        """Store for a tenant what was written piece by piece; its SHA-256 and its size. ``key_id``: as of `put`."""
        self._take(tenant, kind, {writer.sha256: writer.size_bytes})
        self._adopt(kind, [writer.sha256])
        add_uploads(self._db, tenant, kind, {writer.sha256: writer.size_bytes}, key_id)
        return writer.commit()

    def _take(self, tenant: str, kind: UploadKind, sizes: dict[str, int]) -> None:
        """Raises StorageFull if there is no room for what of these is new to the tenant."""
        known = used_uploads(self._db, tenant, kind, sizes) if self._stored.limited else set()
        self._stored.take(tenant, sum(size for sha256, size in sizes.items() if sha256 not in known))

    def of(self, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> set[str]:
        """Those of the blobs that the tenant has."""
        found = used_uploads(self._db, tenant, kind, sha256s)
        if tenant == DEFAULT_TENANT and (missing := set(sha256s) - found):
            found |= self._adopt(kind, missing)
        return found

    def delete(self, by: Caller, kind: UploadKind, sha256: str) -> None:
        """Take one away from its tenant, and its bytes if nobody else has them. Raises NotFound, Conflict."""
        self.of(by.tenant, kind, [sha256])
        delete_upload(self._db, by, kind, sha256)
        self._remove(kind, sha256)

    def expire(self, kept_s: float, most: int) -> int:
        """Take away what has not been used for so long and is not needed; how many of up to ``most`` were looked at."""
        looked_at, gone = expire_uploads(self._db, kept_s, most)
        for kind, sha256 in gone:
            self._remove(kind, sha256)
        return looked_at

    def collect(self, young: timedelta) -> int:
        """Delete the bytes that are nobody's and were not written just now; how many."""
        deleted = 0
        for kind in get_args(UploadKind):
            blobs = self._blobs.list(f"{kind}s")
            while some := list(islice(blobs, _TOGETHER)):
                deleted += sum(self._remove(kind, blob.sha256) for blob in self._ownerless(kind, some, young))
        return deleted

    def _ownerless(self, kind: UploadKind, blobs: Iterable[BlobInfo], young: timedelta) -> list[BlobInfo]:
        old = {blob.sha256: blob for blob in blobs if datetime.now(UTC) - blob.modified >= young}
        if not old:
            return []
        with self._db.read() as connection:
            nobodys = ownerless(connection, kind, old)
        return [old[sha256] for sha256 in nobodys - self._adopt(kind, nobodys)]

    def _remove(self, kind: UploadKind, sha256: str) -> bool:
        return remove_ownerless(self._db, kind, sha256, lambda: self._blobs.delete(sha256, f"{kind}s"))

    def _adopt(self, kind: UploadKind, sha256s: Iterable[str]) -> set[str]:
        """Give the default tenant those that were there before there were tenants, and are nobody's yet.

        Before they are put again: that makes them young, and nobody would know any more whose they were.
        """
        old = {sha256: size for sha256 in sha256s if (size := self._old_size(sha256, kind)) is not None}
        if not old:
            return set()
        with self._db.read() as connection:
            nobodys = ownerless(connection, kind, old)
        add_uploads(self._db, DEFAULT_TENANT, kind, {sha256: old[sha256] for sha256 in nobodys})
        return nobodys

    def _old_size(self, sha256: str, kind: UploadKind) -> int | None:
        """Of a blob that was there before there were tenants."""
        if self._since is None:
            with self._db.read() as connection:
                self._since = default_tenant_since(connection)
        info = self._blobs.info(sha256, f"{kind}s")
        return info.size_bytes if info is not None and info.modified.timestamp() < self._since else None
