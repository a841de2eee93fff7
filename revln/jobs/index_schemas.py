"""What an index job is asked and what it answers: every change to a collection, and every report on one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from revln.jobs.schemas import (
    LONG_S,
    MAX_INLINE_ITEMS,
    SHA_EXAMPLE,
    CollectionName,
    FilterJson,
    Item,
    ItemId,
    ItemResult,
    ItemsParameters,
    JobResult,
    ManifestRef,
    ModelOf,
    Operation,
    Parameters,
    Strict,
    TextRead,
    Truncate,
)

__all__ = [
    "DEDUP_SCORE",
    "INDEX_OPERATIONS",
    "MAX_DIM",
    "BuildParameters",
    "DeleteParameters",
    "DuplicatesParameters",
    "IndexInput",
    "IndexItem",
    "IndexParameters",
    "IndexResult",
    "MigrateParameters",
    "UpsertParameters",
]

MAX_DIM = 16_384
WRITTEN_ITEMS = 1_000  # in a chunk that computes nothing: a chunk costs some ten milliseconds, whatever is in it
DEDUP_SCORE = 0.97  # the cosine of what is nearly the same, unless one says another


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


class IndexSpec(Strict):
    """What index to build; docs/index.md compares the types."""

    type: Literal["auto", "flat", "hnsw", "ivf", "ivfpq"] = "auto"
    recall: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Least recall@10 on held-out vectors; REVLN_INDEX_RECALL if it is left out."
    )
    lists: Annotated[int, Field(ge=1, le=1_048_576)] | None = Field(None, description="Of ivf and ivfpq: clusters.")
    links: Annotated[int, Field(ge=4, le=128)] | None = Field(None, description="Of hnsw: links of a row, M.")

    @model_validator(mode="after")
    def _parameters_of_the_type(self) -> Self:
        for name, types in (("lists", ("ivf", "ivfpq")), ("links", ("hnsw",))):
            if getattr(self, name) is not None and self.type not in types:
                raise ValueError(f"{name} is of type {' and '.join(types)}, not of {self.type}")
        return self


class IndexParameters(Parameters):
    """What every operation has; ``one_of`` names the fields of the input of which it needs exactly one."""

    one_of: ClassVar[tuple[str, ...]] = ()

    collection: str
    operation: str
    vectors_of: str | None = None


class UpsertParameters(IndexParameters, ItemsParameters):
    one_of = ("items", "manifest")

    truncate: Truncate = None

    @property
    def brings_vectors(self) -> bool:
        return self.vectors_of is not None


class DeleteParameters(IndexParameters):
    one_of = ("ids", "filter")

    filter: dict[str, Any] | None = None


class BuildParameters(IndexParameters):
    index: IndexSpec = IndexSpec()


class DuplicatesParameters(IndexParameters):
    filter: dict[str, Any] | None = None
    min_score: float = DEDUP_SCORE
    exact: bool = False


class MigrateParameters(IndexParameters):
    allow_missing: bool = False


# To add one: its parameters above, a line here, its fields below, a handler.
INDEX_OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            name="upsert", parameters=UpsertParameters, written_chunk_items=WRITTEN_ITEMS, changes_collection=True
        ),
        Operation(
            name="delete", parameters=DeleteParameters, items_field="ids", chunk_items=WRITTEN_ITEMS,
            changes_collection=True,
        ),
        Operation(name="build", parameters=BuildParameters, timeout_s=LONG_S, changes_collection=True),
        Operation(name="duplicates", parameters=DuplicatesParameters, timeout_s=LONG_S, open_ended=True),
        Operation(
            name="migrate", parameters=MigrateParameters, timeout_s=LONG_S, open_ended=True, model=ModelOf.NEXT,
            changes_collection=True,
        ),
    )
}  # fmt: skip


class IndexInput(Strict):
    """Change a collection: upsert items, delete by ids or by filter; build its index, report duplicates, migrate."""

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
    operation: Literal[*INDEX_OPERATIONS] = "upsert"  # type: ignore[valid-type]
    items: Annotated[list[IndexItem], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None
    manifest: ManifestRef | None = None
    ids: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None
    filter: FilterJson | None = None
    vectors_of: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="The fingerprint of the model that made the items' vectors; it must be the collection's."
    )

    truncate: Truncate = None

    index: IndexSpec | None = Field(None, description="Of operation build.")
    min_score: Annotated[float, Field(ge=0.5, le=1)] | None = Field(
        None, description=f"Of duplicates: the least cosine of two items that are nearly the same; else {DEDUP_SCORE}."
    )
    exact: bool | None = Field(
        None, description="Of duplicates: compare every pair, also where an index could find them sooner."
    )

    allow_missing: bool | None = Field(
        None,
        description="Of migrate: leave out the items that the new model cannot embed, instead of changing nothing.",
    )

    @model_validator(mode="after")
    def _operation_and_source(self) -> Self:
        asked = _parameters(self.operation)
        given = [name for name in ("items", "manifest", "ids", "filter") if getattr(self, name) is not None]
        if not asked.one_of:
            if out_of_place := set(given) - set(asked.model_fields):
                raise ValueError(
                    f"{self.operation} looks at the whole collection; leave out {', '.join(sorted(out_of_place))}"
                )
        elif len(given) != 1 or given[0] not in asked.one_of:
            raise ValueError(
                f"{self.operation} needs exactly one of {', '.join(asked.one_of)}; got {', '.join(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _fields_of_the_operation(self) -> Self:
        for name in ("truncate", "index", "min_score", "exact", "allow_missing"):
            if getattr(self, name) is not None and name not in _parameters(self.operation).model_fields:
                owner = next(one for one in INDEX_OPERATIONS if name in _parameters(one).model_fields)
                raise ValueError(f"{name} belongs to operation {owner!r}, not to {self.operation!r}; leave it out")
        return self


def _parameters(operation: str) -> type[IndexParameters]:
    parameters = INDEX_OPERATIONS[operation].parameters
    assert issubclass(parameters, IndexParameters)
    return parameters


# --- results -----------------------------------------------------------------------------------------------------


class BuiltSnapshot(BaseModel):
    id: str
    type: str
    factory: str = Field(description="In faiss's language.")
    parameters: dict[str, Any] = Field(description="width: links or lists looked at for 10 results; rerank: times k.")
    up_to_seq: int
    count: int
    size_bytes: int
    recall: float = Field(description="recall@10 on the collection's own held-out vectors, against exact search.")
    qps: float = Field(description="Single queries a second on the machine that built it.")
    exact_qps: float = Field(description="The same, looking at every vector.")
    build_s: float


class Duplicate(BaseModel):
    id: str
    score: float = Field(description="Its cosine with the item that stands for the group.")


class DuplicatesReport(BaseModel):
    items: int = Field(description="Items that were compared.")
    groups: int
    duplicates: int = Field(description="Items that could go if one of each group stayed.")
    min_score: float
    exact: bool = Field(description="Whether every pair was compared, or each item with what the index found near it.")


class Migration(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: str
    model_fingerprint: str
    former_model: str
    former_fingerprint: str
    items: int
    missing: int = Field(description="Items that were left out; each follows with its reason.")


class IndexItemResult(ItemResult, TextRead):
    seq: int | None = Field(None, description="The row of the collection's log that carries this change.")
    deleted: int | None = Field(None, description="Of a delete by filter: how many items it took.")
    snapshot: BuiltSnapshot | None = Field(None, description="Of a build: what is served now.")
    report: DuplicatesReport | None = Field(None, description="Of duplicates, in the first item: the whole in numbers.")
    migration: Migration | None = Field(None, description="Of migrate, in the first item: what serves now.")
    size: int | None = Field(None, description="Of a group: how many items; `id` is the one nearest to their mean.")
    duplicates: list[Duplicate] | None = Field(
        None, description="Of a group: the others, nearest first; the first 10,000 of them."
    )


class IndexResult(JobResult):
    items: list[IndexItemResult]
    total: int
    collection: str
    head_seq: int
