"""Files that `revln index import` cannot read, or only with care: one error that says which, never a traceback."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revln.errors import UsersError
from revln.transfer.sources import open_source


def rows_of(*paths: Path) -> list[dict[str, Any]]:
    return [item for _, items in open_source(paths).pieces for item in items]


def with_lines(folder: Path, *lines: Any) -> tuple[Path, Path]:
    np.save(folder / "v.npy", np.ones((len(lines), 4), np.float32))
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "v.npy", folder / "m.jsonl"


@pytest.mark.parametrize("metadata", ["a text", "[1, 2]", ["a"], 7, "7", True])
def test_metadata_that_is_no_object_is_refused_with_its_row(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(UsersError, match="Row 1: metadata is"):
        rows_of(*with_lines(tmp_path, {"metadata": {"a": 1}}, {"metadata": metadata}))


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    exact = [1_700_000_000_123_456_789, None, 1_700_000_000_123_456_000]
    table = {"vector": [[1.0, 2.0]] * 3}
    table |= {"at": pa.array(exact, pa.timestamp("ns")), "utc": pa.array(exact, pa.timestamp("ns", "UTC"))}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    first, gap, last = (item["metadata"] for item in rows_of(tmp_path / "t.parquet"))
    assert first == {"at": "2023-11-14T22:13:20.123456789", "utc": "2023-11-14T22:13:20.123456789+00:00"}
    assert gap == {}
    assert datetime.fromisoformat(last["utc"]).timestamp() == pytest.approx(exact[2] / 1e9)


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((, \n", b"PK\x03\x04 no zip"]
)
def test_a_damaged_array_is_one_error(tmp_path: Path, data: bytes) -> None:
    paths = with_lines(tmp_path, {})
    paths[0].write_bytes(data)
    with pytest.raises(UsersError, match=r"v\.npy"):
        rows_of(*paths)


def test_an_archive_under_the_name_of_an_array_is_named(tmp_path: Path) -> None:
    paths = with_lines(tmp_path, {})
    with paths[0].open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(UsersError, match="archive"):
        rows_of(*paths)


def test_a_damaged_page_of_parquet_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"vector": [[1.0, 2.0]] * 500, "a": ["x" * 9] * 500}), file)
    data = bytearray(file.read_bytes())
    data[4:60] = b"\xff" * 56
    file.write_bytes(data)
    with pytest.raises(UsersError, match=r"t\.parquet"):
        rows_of(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", "\xff"])
def test_a_damaged_export_is_one_error(tmp_path: Path, text: str) -> None:
    with_lines(tmp_path, {})[0].rename(tmp_path / "vectors.npy")
    (tmp_path / "collection.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsersError, match=r"collection\.json"):
        rows_of(tmp_path)
