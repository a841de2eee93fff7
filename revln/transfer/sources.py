"""Files of vectors and what belongs to them, read as items a piece at a time.

- ``vectors.npy`` alone, or with ``metadata.jsonl`` or ``metadata.parquet``: row i belongs to line i
- a Parquet file with a column of vectors
- a folder that clip-retrieval wrote: ``img_emb/*.npy`` (or ``text_emb``) beside ``metadata/*.parquet``
- a folder that `revln index export` wrote

Of a row's fields ``id``, ``text`` (or ``caption``), ``image_sha256`` and ``metadata`` are the item's; all others become
metadata. Without an id a row's number is its id (`revln.transfer.ids`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from tokenize import TokenError
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from revln.errors import UsersError
from revln.transfer.ids import RowIds

__all__ = ["COLLECTION_FILE", "ITEMS_FILE", "VECTORS_FILE", "Piece", "Source", "open_source", "parquet"]

# What an export is made of.
COLLECTION_FILE, ITEMS_FILE, VECTORS_FILE = "collection.json", "items.parquet", "vectors.npy"

_ROWS = 5_000  # of a piece
_VECTOR_COLUMNS = ("vector", "embedding", "embeddings", "image_embedding")
_LINE_BYTES = 2**20
_BUFFER_BYTES = 2**20  # of each column of a Parquet file

Piece = tuple[NDArray[np.float32], list[dict[str, Any]]]  # (N, D) and N items without their vectors


@dataclass(frozen=True, slots=True)
class Source:
    """``pieces`` can be gone through once. ``count`` is what the files say beforehand."""

    dim: int
    count: int
    pieces: Iterator[Piece]
    model: str | None = None  # of an export: whose vectors these are
    fingerprint: str | None = None
    ids: RowIds = field(default_factory=RowIds)


def parquet() -> Any:
    """pyarrow.parquet. Raises UsersError, saying what to install."""
    try:
        import pyarrow.parquet as found
    except ImportError as err:
        raise UsersError("Parquet files are read and written by pyarrow: pip install pyarrow.") from err
    return found


def open_source(
    paths: Sequence[Path], *, vectors: str = "img_emb", id_field: str = "id", id_prefix: str = ""
) -> Source:
    """The items in these files.

    Raises:
        UsersError: the files are none of the forms above, are damaged, or do not fit together.
    """
    first, ids = paths[0], _Ids(id_field, RowIds(id_prefix))
    if len(paths) == 1 and (first / COLLECTION_FILE).is_file():
        about = _about(first / COLLECTION_FILE)
        source = _npy_with([(first / VECTORS_FILE, first / ITEMS_FILE)], ids)
        return replace(source, model=about["model"], fingerprint=about["model_fingerprint"] if about["model"] else None)
    if len(paths) == 1 and first.is_dir():
        return _npy_with(_clip_retrieval(first, vectors), ids)
    if len(paths) == 1 and first.suffix == ".parquet":
        return _parquet_with_vectors(first, ids)
    if len(paths) == 2 and first.suffix == ".npy" and paths[1].suffix in (".jsonl", ".parquet"):
        return _npy_with([(first, paths[1])], ids)
    if len(paths) == 1 and first.suffix == ".npy":
        return _npy_with([(first, None)], ids)
    raise UsersError(
        f"{' '.join(map(str, paths))}: give vectors.npy, alone or with metadata.jsonl or metadata.parquet, one Parquet "
        "file with a column of vectors, or a folder that clip-retrieval or 'revln index export' wrote."
    )


def _about(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        return {name: found[name] for name in ("model", "model_fingerprint")}
    except (OSError, ValueError, RecursionError, TypeError, LookupError) as err:
        raise UsersError(f"{file} is not what 'revln index export' wrote: {err!r}") from err


@dataclass(frozen=True, slots=True)
class _Ids:
    """Which field of a row holds its id, and what its id becomes."""

    field: str
    of: RowIds


def _clip_retrieval(folder: Path, vectors: str) -> list[tuple[Path, Path | None]]:
    """The shards: each number from 0 on, with its vectors and its metadata. Raises UsersError: one is missing."""
    files = {_number(file): file for file in (folder / vectors).glob(f"{vectors}_*.npy")}
    beside = {_number(file): file for file in (folder / "metadata").glob("metadata_*.parquet")}
    if not files:
        raise UsersError(f"{folder} holds neither {COLLECTION_FILE} nor {vectors}/{vectors}_0.npy: nothing to import.")
    last = max(files | beside)
    for number in range(last + 1):
        for there, kind in ((files, f"{vectors}/{vectors}"), (beside, "metadata/metadata")):
            if number not in there:
                raise UsersError(
                    f"{folder} has shards up to {last}, and no {kind}_{number}. Bring it back; or import each "
                    f"shard that is there by itself: {vectors}_N.npy with its metadata_N.parquet."
                )
    return [(files[number], beside[number]) for number in sorted(files)]


def _number(file: Path) -> int:
    found = re.search(r"(\d+)$", file.stem)
    return int(found[1]) if found else -1


def _npy_with(pairs: Sequence[tuple[Path, Path | None]], ids: _Ids) -> Source:
    arrays = [_array(file) for file, _ in pairs]
    dims = {array.shape[1] for array in arrays}
    if len(dims) != 1:
        raise UsersError(f"The vectors are of different lengths: {', '.join(map(str, sorted(dims)))}.")

    def pieces() -> Iterator[Piece]:
        before = 0
        for (file, metadata), array in zip(pairs, arrays, strict=True):
            at = 0
            for rows in _rows(metadata) if metadata is not None else _no_rows(len(array)):
                part = array[at : at + len(rows)]
                at += len(rows)
                if at > len(array):
                    break
                yield part.astype(np.float32), _items(rows, before + at - len(rows), ids)
            if at != len(array):
                other = "more" if at > len(array) else at
                raise UsersError(f"{file} has {len(array)} rows, {metadata} has {other}: they do not belong together.")
            before += at

    return Source(dims.pop(), sum(map(len, arrays)), pieces(), ids=ids.of)


def _array(file: Path) -> NDArray[Any]:
    try:
        with file.open("rb") as opened:
            if opened.read(2) == b"PK":
                raise UsersError(f"{file} is an archive of arrays (.npz); one array (.npy) is wanted.")
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, SyntaxError, TokenError) as err:
        raise UsersError(f"{file} cannot be read as an array: {err}") from err
    if found.ndim != 2 or found.dtype.kind != "f" or not found.shape[1]:
        raise UsersError(f"{file} holds {found.dtype} of shape {found.shape}; (N, D) floats are wanted.")
    return cast("NDArray[Any]", found)


def _no_rows(count: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, count, _ROWS):
        yield [{} for _ in range(min(_ROWS, count - start))]


def _rows(file: Path) -> Iterator[list[dict[str, Any]]]:
    if file.suffix == ".parquet":
        for batch in _batches(file, _open_parquet(file)):
            yield _plain_rows(file, batch)
        return
    with file.open("rb") as lines:
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(iter(lambda: lines.readline(_LINE_BYTES), b""), start=1):
            rows.append(_object(file, number, line))
            if len(rows) == _ROWS:
                yield rows
                rows = []
        if rows:
            yield rows


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise UsersError(f"{file}, line {number} is not JSON: {err}") from err
    if not isinstance(found, dict):
        raise UsersError(f"{file}, line {number} is no object.")
    return found


def _open_parquet(file: Path) -> Any:
    arrow = parquet()
    try:
        # By default pyarrow reads a whole row group ahead, which may be the whole file.
        return arrow.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (OSError, ValueError) as err:  # pyarrow's own errors are ValueErrors
        raise UsersError(f"{file} cannot be read as Parquet: {err}") from err


def _batches(file: Path, opened: Any, **options: Any) -> Iterator[Any]:
    """Record batches. Raises UsersError for a damaged page, which is seen when it is reached."""
    try:
        yield from opened.iter_batches(**{"batch_size": _ROWS, **options})
    except (OSError, ValueError, NotImplementedError) as err:
        raise UsersError(f"{file} is damaged, or written in a way that pyarrow does not read: {err}") from err


def _plain_rows(file: Path, batch: Any) -> list[dict[str, Any]]:
    """Return a batch as Python values; a time with nanoseconds, which those have not, as text."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = _nanoseconds(column) if str(column.type).startswith("timestamp[ns") else column.to_pylist()
        except (ValueError, OverflowError, LookupError, NotImplementedError) as err:
            raise UsersError(f"{file}, column {name!r} of type {column.type} cannot be read: {err}") from err
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * len(batch)


def _nanoseconds(column: Any) -> list[Any]:
    import pyarrow as pa

    whole = column.cast(pa.timestamp("us", column.type.tz), safe=False).to_pylist()
    return [
        None if at is None else at if not exact % 1000 else _with_nanoseconds(at.isoformat("T", "microseconds"), exact)
        for at, exact in zip(whole, column.cast(pa.int64()).to_pylist(), strict=True)
    ]


def _with_nanoseconds(text: str, exact: int) -> str:
    """``text`` ends in microseconds, or in those and an offset."""
    at = text.index(".") + 7
    return f"{text[:at]}{exact % 1000:03d}{text[at:]}"


def _parquet_with_vectors(file: Path, ids: _Ids) -> Source:
    opened = _open_parquet(file)
    column = next((name for name in _VECTOR_COLUMNS if name in opened.schema_arrow.names), None)
    if column is None:
        there = ", ".join(opened.schema_arrow.names)
        raise UsersError(f"{file} has columns {there}; one of {', '.join(_VECTOR_COLUMNS)} must be there.")
    if not opened.metadata.num_rows:
        raise UsersError(f"{file} has no rows.")
    first = next(_batches(file, opened, batch_size=1, columns=[column]))
    dim = _matrix(file, first.column(0)).shape[1]

    def pieces() -> Iterator[Piece]:
        at = 0
        for batch in _batches(file, opened):
            matrix = _matrix(file, batch.column(batch.schema.get_field_index(column)))
            yield matrix, _items(_plain_rows(file, batch.drop_columns([column])), at, ids)
            at += len(matrix)

    return Source(dim, opened.metadata.num_rows, pieces(), ids=ids.of)


def _matrix(file: Path, column: Any) -> NDArray[np.float32]:
    """A column of lists of numbers, or of float32 bytes, as (N, D)."""
    try:
        rows = column.to_pylist() if str(column.type) in ("binary", "large_binary") else None
        flat = np.frombuffer(b"".join(rows), "<f4") if rows else column.flatten().to_numpy(zero_copy_only=False)
        found = np.asarray(flat, dtype=np.float32).reshape(len(column), -1)
    except (TypeError, ValueError, AttributeError) as err:
        raise UsersError(f"{file}: the vectors are not all there, or not all of one length: {err}") from err
    return found


def _items(rows: Iterable[Mapping[str, Any]], first: int, ids: _Ids) -> list[dict[str, Any]]:
    return [_item(dict(row), number, ids) for number, row in enumerate(rows, start=first)]


def _item(fields: dict[str, Any], number: int, ids: _Ids) -> dict[str, Any]:
    item_id = ids.of.of(number, fields.pop(ids.field, None))
    text = fields.pop("text", None) or fields.pop("caption", None)
    image, metadata = fields.pop("image_sha256", None), fields.pop("metadata", None)
    if isinstance(metadata, str):
        metadata = _parsed(metadata)
    if metadata is not None and not isinstance(metadata, dict):
        raise UsersError(
            f"Row {number}: metadata is {str(metadata)[:60]!r}, which is no object of names and values. Call the field "
            "something else, and it is kept as one of those."
        )
    others = {name: kept for name, value in fields.items() if (kept := _plain(value)) is not None}
    item: dict[str, Any] = {"id": item_id, "metadata": {**others, **(metadata or {})}}
    if text:
        item["text"] = text
    if image:
        item["image"] = {"sha256": image}
    return item


def _parsed(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _plain(value: Any) -> Any:
    """The value as JSON has it; None for what it cannot hold: bytes, NaN."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None  # JSON's numbers are read as floats, which would round it
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int) else None
