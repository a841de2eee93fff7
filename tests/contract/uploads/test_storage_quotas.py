"""What a tenant, and all of them, may have stored; and how much of the disk is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from revln.access import Caller
from revln.blobs import BlobStore, local, writer
from revln.db.engine import Database
from revln.db.uploads import quotas
from revln.db.uploads.quotas import StorageQuotas
from revln.errors import StorageFull
from revln.uploads import Uploads

PICTURES = [bytes([n]) * 100 for n in range(10)]


def test_a_tenant_stores_no_more_than_its_quota_and_others_have_theirs(db: Database, tmp_path: Path) -> None:
    uploads = Uploads(db, BlobStore(str(tmp_path)), StorageQuotas(tenant_bytes=250))
    new = uploads.put("a", PICTURES[:2])
    with pytest.raises(StorageFull, match=r"200 bytes of tenant a .* 100; at most 250 .*REVLN_TENANT_MAX_STORED_BYTES"):
        uploads.put("a", [PICTURES[2]])
    assert uploads.put("a", PICTURES[:2]) == set(), "what it has is not stored twice"
    assert len(uploads.put("b", [PICTURES[0]])) == 1, "and counts for each who has it"
    with pytest.raises(StorageFull):
        Uploads(db, BlobStore(str(tmp_path)), StorageQuotas(tenant_bytes=250)).put("a", [PICTURES[2]])
    with uploads._blobs.writer("manifests") as manifest:
        manifest.write(b"x" * 51)
        with pytest.raises(StorageFull):
            uploads.commit("a", "manifest", manifest)
    uploads.delete(Caller("a", "test", frozenset()), "image", new.pop())
    fresh = Uploads(db, BlobStore(str(tmp_path)), StorageQuotas(tenant_bytes=250))
    assert len(fresh.put("a", [PICTURES[2]])) == 1


def test_what_was_deleted_is_room_again_within_seconds(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_FRESH_S", 0.0)
    uploads = Uploads(db, BlobStore(str(tmp_path)), StorageQuotas(tenant_bytes=100))
    (sha256,) = uploads.put("a", PICTURES[:1])
    uploads.delete(Caller("a", "test", frozenset()), "image", sha256)
    assert len(uploads.put("a", PICTURES[1:2])) == 1


def test_all_tenants_together_have_a_quota(db: Database, tmp_path: Path) -> None:
    uploads = Uploads(db, BlobStore(str(tmp_path)), StorageQuotas(tenant_bytes=200, all_bytes=300))
    uploads.put("a", PICTURES[:2])
    uploads.put("b", PICTURES[2:3])
    with pytest.raises(StorageFull, match="300 bytes in all"):
        uploads.put("b", PICTURES[3:4])


def test_a_part_of_the_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=1_000)
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: free)
    store = BlobStore(str(tmp_path / "not" / "there"), min_free_bytes=1_000)
    store.put(b"fits")
    free.free = 999
    for refused in (store.check_room, lambda: store.put(b"more")):
        with pytest.raises(StorageFull, match=r"999 bytes .* 1,000 are to stay so \(REVLN_MIN_FREE_BYTES\)"):
            refused()
    free.free = 1_000
    monkeypatch.setattr(writer, "_LOOK_BYTES", 10)
    with store.writer("manifests") as manifest:
        manifest.write(b"x" * 10)
        free.free = 0
        with pytest.raises(StorageFull):
            manifest.write(b"x")
    assert list(store.list("manifests")) == []
