"""Blobs: stored whole or not at all, believed only by their hash. Each test runs in a folder and in fsspec's memory."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from revln.blobs import BlobStore
from revln.errors import ItemInvalid, ItemNotFound, PayloadTooLarge, SettingsError, Unavailable

ABSENT = hashlib.sha256(b"absent").hexdigest()


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "blobs"),
        "file": f"file://{tmp_path}/blobs",
        "memory": f"memory://{uuid4().hex}",
    }[request.param]


@pytest.fixture
def store(url: str) -> BlobStore:
    return BlobStore(url)


@pytest.fixture
def local(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path))


def put_stream(store: BlobStore, pieces: Iterable[bytes], max_bytes: int | None = None) -> tuple[str, int]:
    with store.writer("manifests", max_bytes) as writer:
        for piece in pieces:
            writer.write(piece)
        return writer.commit()


def file_of(root: Path, sha256: str, prefix: str = "images") -> Path:
    return root / prefix / sha256[:2] / sha256[2:4] / sha256


def everything_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_was_put_is_got_under_its_hash(store, url):
    data = os.urandom(5_000)
    sha256 = store.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.exists(sha256)
    assert store.size(sha256) == 5_000
    assert BlobStore(url).get(sha256) == data


def test_nothing_at_all_is_a_blob_too(store):
    assert store.get(store.put(b"")) == b""


def test_putting_twice_keeps_one(store):
    assert store.put(b"same") == store.put(b"same")
    assert [info.size_bytes for info in store.list()] == [4]


def test_prefixes_are_apart(store):
    sha256 = store.put(b"x", prefix="snapshots")
    assert not store.exists(sha256, "images")
    assert list(store.list("images")) == []
    assert store.get(sha256, "snapshots") == b"x"


def test_what_is_absent_is_not_found_by_name(store):
    for use in (
        store.get,
        store.size,
        store.open,
        store.verify,
        lambda sha256: store.read_range(sha256, "images", 0, 9),
    ):
        with pytest.raises(ItemNotFound, match=ABSENT):
            use(ABSENT)
    assert not store.exists(ABSENT)
    assert not store.delete(ABSENT)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../" * 8 + "etc/passwd",
        ABSENT.upper(),
        ABSENT[:-1],
        ABSENT + "0",
        ABSENT + "\n",
        "/" + ABSENT[1:],
        None,
    ],
)
def test_a_name_that_is_no_hash_is_refused(store, name):
    for use in (store.get, store.exists, store.delete, store.open, store.size, store.verify):
        with pytest.raises(ItemInvalid, match="not a SHA-256"):
            use(name)


@pytest.mark.parametrize("prefix", ["", "..", "a/b", "/etc", "_damaged", "A", "a\n"])
def test_a_prefix_that_could_lead_elsewhere_is_refused(store, prefix):
    with pytest.raises(ItemInvalid):
        store.put(b"x", prefix=prefix)
    with pytest.raises(ItemInvalid):
        store.get(ABSENT, prefix)
    with pytest.raises(ItemInvalid):
        list(store.list(prefix))


def test_a_stream_is_stored_piece_by_piece(store):
    pieces = [os.urandom(2**20) for _ in range(9)]  # over the size up to which a remote put is one request
    sha256, size = put_stream(store, iter(pieces), max_bytes=9 * 2**20)
    assert (sha256, size) == (hashlib.sha256(b"".join(pieces)).hexdigest(), 9 * 2**20)
    assert store.verify(sha256) == size
    assert store.read_range(sha256, "manifests", 2**20 - 1, 3) == pieces[0][-1:] + pieces[1][:2]


def test_a_stream_over_the_limit_stops_there_and_leaves_nothing(store, tmp_path):
    taken = []

    def pieces():
        for number in range(1_000):
            taken.append(number)
            yield b"x" * 10

    with pytest.raises(PayloadTooLarge, match="Over 25 bytes"):
        put_stream(store, pieces(), max_bytes=25)
    assert len(taken) == 3
    assert list(store.list("manifests")) == []
    assert everything_under(tmp_path) == []


def test_a_stream_that_breaks_leaves_nothing_and_keeps_its_own_error(store, tmp_path):
    def pieces():
        yield b"half"
        raise KeyError("the client went away")

    with pytest.raises(KeyError, match="went away"):
        put_stream(store, pieces())
    assert list(store.list("manifests")) == []
    assert everything_under(tmp_path) == []


def test_a_writer_that_is_not_committed_leaves_nothing(store, tmp_path):
    with store.writer("manifests") as writer:
        writer.write(b"half")
    assert list(store.list("manifests")) == []
    assert everything_under(tmp_path) == []


def test_a_manifest_is_read_by_lines_and_by_ranges(store):
    sha256, size = put_stream(store, [b"one\n", b"two\n", b"three\n"])
    with store.open(sha256) as file:
        assert file.readline() == b"one\n"
        file.seek(8)
        assert file.readlines() == [b"three\n"]
    ranges = [store.read_range(sha256, "manifests", offset, 5) for offset in range(0, size, 5)]
    assert b"".join(ranges) == b"one\ntwo\nthree\n"
    assert store.read_range(sha256, "manifests", 99, 5) == b""
    assert store.read_range(sha256, "manifests", 0, 0) == b""
    with pytest.raises(ItemInvalid, match="offset=-1"):
        store.read_range(sha256, "manifests", -1, 5)


def test_two_readers_of_one_blob_have_their_own_positions(store):
    sha256 = store.put(b"0123456789")
    with store.open(sha256, "images") as one, store.open(sha256, "images") as other:
        assert (one.read(4), other.read(2), one.read(2)) == (b"0123", b"01", b"45")


def test_a_list_names_every_blob_with_its_size_and_time(store):
    wanted = {store.put(bytes(size)): size for size in range(20)}
    before = datetime.now(UTC) - timedelta(minutes=1)
    found = list(store.list())
    assert {info.sha256: info.size_bytes for info in found} == wanted
    assert [info.sha256 for info in found] == sorted(wanted)
    assert all(before < info.modified <= datetime.now(UTC) + timedelta(seconds=1) for info in found)


def test_a_deleted_blob_is_gone(store):
    sha256 = store.put(b"x")
    assert store.delete(sha256)
    assert not store.exists(sha256)
    assert not store.delete(sha256)


def test_a_collector_does_not_delete_what_was_put_again_since_it_looked(store, url, tmp_path):
    sha256 = store.put(b"x")
    if not url.startswith("memory"):  # make the first put an old one
        os.utime(file_of(tmp_path / "blobs", sha256), (1_000, 1_000))
    (seen,) = store.list()
    store.put(b"x")
    assert not store.delete(sha256, not_since=seen.modified)
    assert store.get(sha256) == b"x"
    assert store.delete(sha256, not_since=datetime.now(UTC) + timedelta(seconds=1))


def test_many_threads_putting_the_same_bytes_leave_one_good_blob(store, tmp_path):
    data = os.urandom(200_000)
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(store.put, [data] * 32))
    (sha256,) = names
    assert store.get(sha256) == data
    assert len(everything_under(tmp_path)) <= 1


def test_a_forked_child_reads_and_writes_the_same_store(local):
    sha256 = local.put(b"parent")
    child = os.fork()
    if child == 0:
        good = local.get(sha256) == b"parent" and bool(local.put(b"child"))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert local.get(hashlib.sha256(b"child").hexdigest()) == b"child"


@pytest.mark.parametrize("damage", [b"", b"good byteZ", b"good bytes and more"])
def test_a_damaged_blob_is_an_error_and_set_aside_and_can_be_put_again(local, tmp_path, damage):
    sha256 = local.put(b"good bytes")
    file_of(tmp_path, sha256).write_bytes(damage)
    with pytest.raises(ItemNotFound, match="damaged"):
        local.get(sha256)
    assert not local.exists(sha256)
    (aside,) = (tmp_path / "_damaged").iterdir()
    assert sha256 in aside.name
    assert aside.read_bytes() == damage
    assert local.get(local.put(b"good bytes")) == b"good bytes"


def test_a_damaged_manifest_is_found_by_verify_and_set_aside(local, tmp_path):
    sha256, _ = put_stream(local, [b"line\n"] * 10)
    file_of(tmp_path, sha256, "manifests").write_bytes(b"line\n" * 9)
    with pytest.raises(ItemNotFound, match="damaged"):
        local.verify(sha256)
    assert not local.exists(sha256, "manifests")


def test_putting_over_a_damaged_blob_mends_it(local, tmp_path):
    sha256 = local.put(b"good bytes")
    file_of(tmp_path, sha256).write_bytes(b"bad! bytes")
    local.put(b"good bytes")
    assert local.get(sha256) == b"good bytes"


def test_a_put_is_on_disk_before_it_has_its_name(local, tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("rename"), replace(self, to))[1])
    sha256 = local.put(b"x")
    assert steps[:3] == ["fsync", "rename", "fsync"]
    assert everything_under(tmp_path) == [file_of(tmp_path, sha256)]


def test_a_file_that_came_out_short_never_gets_its_name(local, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: os.truncate(handle, 1))  # a full disk that said nothing
    with pytest.raises(Unavailable, match="1 of 10 bytes"):
        local.put(b"good bytes")
    assert everything_under(tmp_path) == []


def test_a_full_disk_is_a_retryable_error_that_says_so(local, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left") as caught:
        local.put(b"x")
    assert caught.value.retryable
    assert everything_under(tmp_path) == []


def test_a_disk_that_is_full_for_what_is_still_buffered_is_that_error_too(local, tmp_path):
    with Path("/dev/full").open("wb", buffering=0) as full:

        def store() -> None:
            with local.writer("images") as writer:
                os.dup2(full.fileno(), writer._draft.file.fileno())
                writer.write(b"less than a buffer")
                writer.commit()

        with pytest.raises(Unavailable, match="No space left"):
            store()
    assert everything_under(tmp_path) == []


def test_a_storage_error_does_not_tell_clients_where_things_are(local, tmp_path):
    local.put(b"x")
    (tmp_path / "_unfinished").rmdir()
    (tmp_path / "_unfinished").write_bytes(b"")  # a file where a folder should be
    with pytest.raises(Unavailable) as caught:
        local.put(b"y")
    assert str(tmp_path) not in caught.value.message


def test_what_a_killed_writer_left_is_removed_when_it_is_old(local, tmp_path):
    child = os.fork()
    if child == 0:
        writer = local.writer("manifests")
        writer.write(b"half")
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = everything_under(tmp_path)
    assert list(local.list("manifests")) == []
    assert local.remove_unfinished(older_than_s=3_600) == 0
    os.utime(left, (1_000, 1_000))
    assert local.remove_unfinished(older_than_s=3_600) == 1
    assert everything_under(tmp_path) == []


def test_what_was_set_aside_is_removed_when_it_has_lain_there_for_long(local, tmp_path):
    sha256 = local.put(b"good bytes")
    file_of(tmp_path, sha256).write_bytes(b"bad")
    os.utime(file_of(tmp_path, sha256), (1_000, 1_000))
    with pytest.raises(ItemNotFound, match="damaged"):
        local.get(sha256)
    assert local.remove_damaged() == 0, "its time begins when it is set aside"
    assert local.remove_damaged(older_than_s=-1) == 1
    assert everything_under(tmp_path) == []


def test_what_was_set_aside_in_a_remote_store_is_removed_too():
    store = BlobStore(f"memory://{uuid4().hex}")
    with pytest.raises(ItemNotFound):
        raise store._set_aside(store.put(b"x"), "images", 1)
    assert (store.remove_damaged(), store.remove_damaged(older_than_s=-1), store.remove_damaged(-1)) == (0, 1, 0)


@pytest.mark.parametrize("url", ["", "  ", "nosuch://place", "simplecache::s3://bucket"])
def test_a_url_that_is_no_place_for_blobs_stops_start_up(url):
    with pytest.raises(SettingsError, match="REVLN_BLOB_URL"):
        BlobStore(url)


def test_a_relative_path_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = BlobStore("blobs")
    sha256 = store.put(b"x")
    monkeypatch.chdir("/")
    assert store.get(sha256) == b"x"


def test_bytes_that_are_there_are_written_before_that_is_known(tmp_path, monkeypatch):
    """Else the time of an upload would tell who sends it that another tenant has the picture."""
    store = BlobStore(str(tmp_path))
    flushed = []
    real = os.fsync
    monkeypatch.setattr("revln.blobs.local.os.fsync", lambda handle: (flushed.append(handle), real(handle)))
    store.put(b"a picture")
    first, flushed[:] = len(flushed), []
    store.put(b"a picture")
    assert first >= 1
    assert len(flushed) == 1
