"""Vectors from files into collections and back: every form that is read, exactly, and again after a cut."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revln.errors import Conflict, UsersError
from revln.transfer import importer
from revln.transfer.exporter import export_items
from revln.transfer.importer import Imported, import_items
from revln.transfer.sources import open_source
from tests.stack import Stack

DIM, COUNT = 6, 40
ROWS = np.random.default_rng(3).standard_normal((COUNT, DIM)).astype(np.float32)
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
METADATA: list[dict[str, Any]] = [
    {"n": n, "tags": ["a", None], "gone": None, "nested": {"é": n / 3}, "text": "not the item's"} for n in range(COUNT)
]


def fresh() -> str:
    return f"transfer-{uuid4().hex[:12]}"


def bring(stack: Stack, name: str, *paths: Path, **options: Any) -> Imported:
    own = options.pop("own", False)
    return import_items(stack.client, name, open_source(paths, **options), own=own)


def items_of(stack: Stack, name: str) -> dict[str, dict[str, Any]]:
    pages = stack.client.item_pages(name, vectors=True, page_items=17)
    return {item["id"]: {**item, "seq": None} for page in pages for item in page}


def numpy_files(folder: Path, rows: Any = ROWS) -> tuple[Path, Path]:
    np.save(folder / "vectors.npy", rows)
    lines = ({"id": f"r{n}", "text": f"row {n}", "metadata": one} for n, one in enumerate(METADATA))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "vectors.npy", folder / "metadata.jsonl"


def test_what_is_exported_comes_back_bit_for_bit(stack: Stack, tmp_path: Path) -> None:
    name, again = fresh(), fresh()
    assert bring(stack, name, *numpy_files(tmp_path)) == Imported(COUNT, 0, [])
    there = items_of(stack, name)
    assert (there["r7"]["text"], there["r7"]["metadata"]) == ("row 7", METADATA[7])
    seen: list[int] = []
    assert export_items(stack.client, name, tmp_path / "out", on_progress=seen.append) == COUNT == sum(seen)
    exported = np.load(tmp_path / "out" / "vectors.npy")
    ids = pq.read_table(tmp_path / "out" / "items.parquet").column("id").to_pylist()
    assert ids == sorted(there)
    assert np.allclose(exported, UNIT[[int(one[1:]) for one in ids]], atol=1e-6)
    assert bring(stack, again, tmp_path / "out").items == COUNT
    assert items_of(stack, again) == there
    with pytest.raises(Conflict, match="an export already"):
        export_items(stack.client, name, tmp_path / "out")
    few = export_items(stack.client, name, tmp_path / "few", filter={"n": {"lt": 5}})
    assert few == len(np.load(tmp_path / "few" / "vectors.npy")) == 5


def test_an_import_that_is_run_again_writes_nothing_twice(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_SLICE_BYTES", 1_000)  # some five items
    name, files = fresh(), numpy_files(tmp_path)
    half = open_source(files)
    pieces = [(vectors[:20], items[:20]) for vectors, items in half.pieces]
    import_items(stack.client, name, type(half)(half.dim, half.count, iter(pieces)))
    assert stack.client.collection(name)["head_seq"] == 20
    assert bring(stack, name, *files).items == COUNT
    assert bring(stack, name, *files).items == COUNT
    found = stack.client.collection(name)
    # The slice in which the first run was cut off has other bytes than the whole one: those few are written again.
    assert found["count"] == COUNT
    assert found["head_seq"] < COUNT + 10
    stack.client.delete_collection(name)
    assert bring(stack, name, *files).items == COUNT
    assert stack.client.collection(name)["head_seq"] == COUNT


def test_an_export_of_a_models_vectors_goes_back_into_that_models_collection_only(stack: Stack, tmp_path: Path) -> None:
    name = fresh()
    made = stack.client.create_collection(name)
    rows = np.eye(made["dim"], dtype=np.float32)[:3]
    items = [{"id": str(n), "vector": row.tolist()} for n, row in enumerate(rows)]
    asked = {"collection": name, "items": items, "vectors_of": made["model_fingerprint"]}
    stack.client.wait(stack.client.submit("index", asked)["id"])
    export_items(stack.client, name, tmp_path / "out")
    again, mine = fresh(), fresh()
    bring(stack, again, tmp_path / "out")
    assert stack.client.collection(again)["model_fingerprint"] == made["model_fingerprint"]
    assert items_of(stack, again) == items_of(stack, name)
    bring(stack, mine, tmp_path / "out", own=True)
    assert stack.client.collection(mine)["model"] is None
    with pytest.raises(Conflict, match="--own"):
        bring(stack, again, *numpy_files(tmp_path, np.ones((COUNT, made["dim"]), np.float32)))
    with pytest.raises(Conflict, match="dimensions"):
        bring(stack, mine, *numpy_files(tmp_path))


def test_clip_retrievals_folder_is_read(stack: Stack, tmp_path: Path) -> None:
    for kind in ("img_emb", "text_emb", "metadata"):
        (tmp_path / kind).mkdir()
    for shard, part in enumerate((slice(0, 11), slice(11, 40))):
        np.save(tmp_path / "img_emb" / f"img_emb_{shard}.npy", ROWS[part].astype(np.float16))
        np.save(tmp_path / "text_emb" / f"text_emb_{shard}.npy", -ROWS[part].astype(np.float16))
        table = pa.table(
            {
                "image_path": [f"/pictures/{n}.jpg" for n in range(40)[part]],
                "caption": [f"caption {n}" if n else None for n in range(40)[part]],
                "width": [640.0 if n % 2 else float("nan") for n in range(40)[part]],
                "key": [b"\x00"] * len(ROWS[part]),
            }
        )
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{shard}.parquet")
    name, texts = fresh(), fresh()
    bring(stack, name, tmp_path)
    bring(stack, texts, tmp_path, vectors="text_emb", id_field="image_path")
    there, other = items_of(stack, name), items_of(stack, texts)
    assert set(there) == {str(n) for n in range(40)}
    assert (there["13"]["text"], there["13"]["metadata"]) == (
        "caption 13",
        {"image_path": "/pictures/13.jpg", "width": 640.0},
    )
    assert (there["0"]["text"], there["0"]["metadata"]) == (None, {"image_path": "/pictures/0.jpg"})
    assert set(other) == {f"/pictures/{n}.jpg" for n in range(40)}
    [hits] = stack.client.search(name, {"vector": ROWS[20].tolist()}, k=1)
    assert (hits["hits"][0]["id"], hits["hits"][0]["score"]) == ("20", pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("form", ["list", "fixed", "binary"])
def test_one_parquet_file_with_vectors_in_it_is_read(stack: Stack, tmp_path: Path, form: str) -> None:
    if form == "binary":
        column: Any = pa.array([row.tobytes() for row in ROWS])
    else:
        column = pa.array(ROWS.tolist(), pa.list_(pa.float32(), DIM if form == "fixed" else -1))
    file = tmp_path / "items.parquet"
    pq.write_table(
        pa.table({"id": list(range(COUNT)), "embedding": column, "year": [2000 + n for n in range(COUNT)]}), file
    )
    name = fresh()
    assert bring(stack, name, file).items == COUNT
    [found] = stack.client.search(name, {"id": "9"}, k=1, filter={"year": 2009})
    assert [hit["id"] for hit in found["hits"]] == ["9"]


def test_bad_rows_are_told_and_the_others_are_written(stack: Stack, tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[3], rows[5, 0] = 0, np.nan
    done = bring(stack, name := fresh(), *numpy_files(tmp_path, rows))
    assert (done.items, done.failed) == (COUNT - 2, 2)
    assert "r3: " in done.errors[0]
    assert "nan" in done.errors[1]
    assert stack.client.collection(name)["count"] == COUNT - 2


def test_rows_without_ids_are_numbered_and_overwrite_nothing_unasked(stack: Stack, tmp_path: Path) -> None:
    name, file = fresh(), tmp_path / "vectors.npy"
    np.save(file, ROWS)
    assert bring(stack, name, file).items == COUNT
    assert set(items_of(stack, name)) == {str(n) for n in range(COUNT)}
    with pytest.raises(UsersError, match=r"has 40 items already.*--id-prefix"):
        bring(stack, name, file)
    assert bring(stack, name, file, id_prefix="b").items == COUNT
    assert stack.client.collection(name)["count"] == 2 * COUNT
    source = open_source([file])
    assert import_items(stack.client, name, source, overwrite=True).items == COUNT
    assert stack.client.collection(name)["count"] == 2 * COUNT


def test_two_rows_of_one_id_and_ids_that_are_none_are_told(tmp_path: Path) -> None:
    for ids, says in (
        (["a", "b", "a"], "Row 2 has the id 'a', and so has"),
        ([1.0, float("nan"), float("nan")], "Row 1 has the id nan"),
        ([None, "0", "x"], "Row 1 has the id '0'"),
        (["", "x", "y"], "Row 0 has the id ''"),
    ):
        pq.write_table(pa.table({"id": ids, "vector": list(ROWS[:3])}), tmp_path / "ids.parquet")
        with pytest.raises(UsersError, match=says):
            list(open_source([tmp_path / "ids.parquet"]).pieces)


@pytest.mark.parametrize("gone", ["img_emb/img_emb_1.npy", "metadata/metadata_1.parquet", "img_emb/img_emb_2.npy"])
def test_a_missing_shard_is_told(tmp_path: Path, gone: str) -> None:
    for kind in ("img_emb", "metadata"):
        (tmp_path / kind).mkdir()
    for shard in range(3):
        np.save(tmp_path / "img_emb" / f"img_emb_{shard}.npy", ROWS[:2])
        pq.write_table(pa.table({"caption": ["a", "b"]}), tmp_path / "metadata" / f"metadata_{shard}.parquet")
    assert open_source([tmp_path]).count == 6
    (tmp_path / gone).unlink()
    with pytest.raises(UsersError, match=gone.rpartition(".")[0]):
        open_source([tmp_path])


def test_a_decimal_is_kept_as_it_is_written(tmp_path: Path) -> None:
    price = Decimal("12345678901234567.89")
    table = pa.table({"id": ["a"], "price": pa.array([price], pa.decimal128(19, 2)), "vector": [ROWS[0]]})
    pq.write_table(table, tmp_path / "decimals.parquet")
    [(_, [item])] = list(open_source([tmp_path / "decimals.parquet"]).pieces)
    assert item["metadata"] == {"price": "12345678901234567.89"}


def test_files_that_do_not_fit_are_told_in_a_line(tmp_path: Path) -> None:
    vectors, metadata = numpy_files(tmp_path)
    np.save(tmp_path / "flat.npy", ROWS[0])
    np.save(tmp_path / "short.npy", ROWS[:30])
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\nnot json\n')
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    (tmp_path / "empty").mkdir()
    for paths, says in [
        ([metadata], "give vectors.npy, alone or with"),
        ([tmp_path / "flat.npy", metadata], "of shape"),
        ([tmp_path / "objects.npy", metadata], "cannot be read as an array"),
        ([tmp_path / "short.npy", metadata], "has 30 rows"),
        ([vectors, tmp_path / "bad.jsonl"], "line 2 is not JSON"),
        ([tmp_path / "bad.parquet"], "cannot be read as Parquet"),
        ([tmp_path / "empty"], "nothing to import"),
    ]:  # fmt: skip
        with pytest.raises(UsersError, match=says):
            list(open_source(paths).pieces)


def test_a_parquet_file_of_one_row_group_is_not_held_whole(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((100_000, 64), dtype=np.float32)
    columns = {"id": [str(n) for n in range(len(vectors))], "vector": list(vectors)}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet", row_group_size=len(vectors))
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for piece, _ in open_source([tmp_path / "all.parquet"]).pieces:
        most = max(most, pa.total_allocated_bytes() - before)
        rows += len(piece)
    assert rows == len(vectors)
    assert most < vectors.nbytes / 2
