"""From a collection into files: vectors.npy, items.parquet and collection.json, a page at a time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy

from revln.client import RevlnClient
from revln.errors import Conflict
from revln.transfer.sources import COLLECTION_FILE, ITEMS_FILE, VECTORS_FILE, parquet

__all__ = ["export_items"]

_PAGE_ITEMS = 2_000  # with 256 dimensions a page is 3 MB of JSON
_GROUP_ITEMS, _GROUP_CHARS = 50_000, 8_000_000  # of a Parquet row group, which is in memory until it is full


def export_items(
    client: RevlnClient,
    name: str,
    folder: Path,
    *,
    filter: dict[str, Any] | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Write a collection, or what of it passes the filter, in the order of the items' ids; how many there were.

    ``collection.json`` comes last: without it the folder is of an export that was cut off. What is changed meanwhile is
    in it as it was, or as it is.

    Raises:
        Conflict: an export is there already.
    """
    about = client.collection(name)
    if (folder / COLLECTION_FILE).exists():
        raise Conflict(f"{folder} holds an export already; delete it, or name another folder.")
    arrow = parquet()
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / VECTORS_FILE).open("wb") as vectors, _writer(arrow, folder / ITEMS_FILE) as items:
        _header(vectors, 0, about["dim"])
        group: list[dict[str, Any]] = []
        chars = 0
        for page in client.item_pages(name, filter=filter, vectors=True, page_items=_PAGE_ITEMS):
            vectors.writelines(base64.b64decode(item["vector_b64"]) for item in page)
            rows = [_row(item) for item in page]
            group += rows
            chars += sum(len(value) for row in rows for value in row.values() if value)
            if len(group) >= _GROUP_ITEMS or chars >= _GROUP_CHARS:
                _write(items, group)
                group, chars = [], 0
            count += len(page)
            on_progress(len(page))
        _write(items, group)
        vectors.seek(0)
        _header(vectors, count, about["dim"])
    kept = {key: about[key] for key in ("name", "model", "model_fingerprint", "dim", "metadata")}
    (folder / COLLECTION_FILE).write_text(json.dumps({**kept, "count": count}, indent=2) + "\n")
    return count


def _header(file: IO[bytes], count: int, dim: int) -> None:
    """numpy leaves room in it for more rows: written again at the end, it is as long as it was."""
    npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})


def _writer(arrow: Any, path: Path) -> Any:
    import pyarrow

    names = ("id", "text", "image_sha256", "metadata")  # the metadata as JSON: a column for each key would change types
    return arrow.ParquetWriter(path, pyarrow.schema([(name, pyarrow.string()) for name in names]))


def _row(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": item["id"],
        "text": item["text"],
        "image_sha256": item["image"]["sha256"] if item["image"] else None,
        "metadata": json.dumps(item["metadata"], ensure_ascii=False),
    }


def _write(writer: Any, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    if rows:
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=writer.schema))
