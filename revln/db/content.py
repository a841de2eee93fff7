"""Uploaded images and computed vectors, both found by what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.upsert import insert_or_ignore
from revln.errors import NotFound

__all__ = ["ImageRecord", "add_image", "cached_vectors", "get_image", "known_images", "store_vectors"]

_IN_BATCH = 500


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An uploaded picture; width and height as a person sees it, EXIF orientation applied."""

    sha256: str
    media_type: str
    width: int
    height: int
    size_bytes: int


def add_image(db: Database, record: ImageRecord) -> bool:
    """Whether the image is new."""
    with db.write() as connection:
        if known_images(connection, [record.sha256]):
            return False
        now = connection.scalar(select(db_now()))
        row = {name: getattr(record, name) for name in ImageRecord.__slots__}
        insert_or_ignore(connection, tables.images, [{**row, "created_at": now}], key=("sha256",))
        return True


def get_image(connection: Connection, sha256: str) -> ImageRecord:
    """Raises NotFound."""
    row = connection.execute(select(tables.images).where(tables.images.c.sha256 == sha256)).one_or_none()
    if row is None:
        raise NotFound(f"There is no image {sha256}. POST /v1/images uploads one.")
    return ImageRecord(**{name: getattr(row, name) for name in ImageRecord.__slots__})


def known_images(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Those of the hashes that were uploaded."""
    known: set[str] = set()
    unique = list(dict.fromkeys(hashes))
    for start in range(0, len(unique), _IN_BATCH):
        query = select(tables.images.c.sha256).where(tables.images.c.sha256.in_(unique[start : start + _IN_BATCH]))
        known.update(connection.scalars(query))
    return known


def cached_vectors(connection: Connection, fingerprint: str, keys: Sequence[str]) -> dict[str, bytes]:
    """The vectors that this model has already computed for these content keys."""
    columns = tables.embeddings.c
    found: dict[str, bytes] = {}
    unique = list(dict.fromkeys(keys))
    for start in range(0, len(unique), _IN_BATCH):
        query = select(columns.content_key, columns.vector).where(
            columns.fingerprint == fingerprint, columns.content_key.in_(unique[start : start + _IN_BATCH])
        )
        found.update({row.content_key: row.vector for row in connection.execute(query)})
    return found


def store_vectors(db: Database, fingerprint: str, computed: Mapping[str, bytes]) -> None:
    """Remember vectors; one that another worker stored meanwhile is kept."""
    if not computed:
        return
    with db.write() as connection:
        now = connection.scalar(select(db_now()))
        rows: list[dict[str, Any]] = [
            {"fingerprint": fingerprint, "content_key": key, "vector": vector, "created_at": now}
            for key, vector in computed.items()
        ]
        insert_or_ignore(connection, tables.embeddings, rows, key=("fingerprint", "content_key"))
