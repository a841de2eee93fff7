"""What an index job is asked and what it answers: every change to a collection, and every report on one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from revln.jobs.schemas import (
    MAX_INLINE_ITEMS,
    SHA_EXAMPLE,
    CollectionName,
    FilterJson,
    Item,
    ItemId,
    ItemResult,
    ManifestRef,
    Strict,
)

__all__ = ["MAX_DIM", "IndexInput", "IndexItem", "IndexResult"]

MAX_DIM = 16_384

# operation → the fields of which it needs exactly one, and those that it may have beside.
_SOURCES: dict[str, tuple[str, ...]] = {
    "upsert": ("items", "manifest"),
    "delete": ("ids", "filter"),
}


class IndexItem(Item):
    """An item of a collection. One with a vector of its own is not embedded; its image and text are only kept."""

    vector: Annotated[list[float], Field(min_length=1, max_length=MAX_DIM)] | None = None
    vector_b64: Annotated[str, Field(max_length=MAX_DIM * 6)] | None = Field(
        None, description="The vector as little-endian float32 in base64: a fifth of its length as numbers."
    )

    @property
    def has_vector(self) -> bool:
        return self.vector is not None or self.vector_b64 is not None

    @model_validator(mode="after")
    def _some_content(self) -> Self:
        if self.vector is not None and self.vector_b64 is not None:
            raise ValueError("give the vector either as vector or as vector_b64")
        if self.image is None and self.text is None and not self.has_vector:
            raise ValueError("an item needs an image, a text, or both; or a vector")
        return self


class IndexInput(Strict):
    """Change a collection: upsert items (the user's id replaces), or delete by ids or by filter."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection": "holiday",
                    "items": [{"id": "dsc-1", "image": {"sha256": SHA_EXAMPLE}, "metadata": {"year": 2026}}],
                }
            ]
        }
    )

    collection: CollectionName
    operation: Literal["upsert", "delete"] = "upsert"
    items: Annotated[list[IndexItem], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None
    manifest: ManifestRef | None = None
    ids: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None
    filter: FilterJson | None = None
    vectors_of: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="The fingerprint of the model that made the items' vectors; it must be the collection's."
    )

    @model_validator(mode="after")
    def _operation_and_source(self) -> Self:
        wanted = _SOURCES[self.operation]
        given = [name for name in ("items", "manifest", "ids", "filter") if getattr(self, name) is not None]
        if len(given) != 1 or given[0] not in wanted:
            raise ValueError(
                f"{self.operation} needs exactly one of {', '.join(wanted)}; got {', '.join(given) or 'none'}"
            )
        return self


# --- results -----------------------------------------------------------------------------------------------------


class IndexItemResult(ItemResult):
    seq: int | None = Field(None, description="The row of the collection's log that carries this change.")
    deleted: int | None = Field(None, description="Of a delete by filter: how many items it took.")


class IndexResult(BaseModel):
    items: list[IndexItemResult]
    total: int
    collection: str
    head_seq: int
