"""What a search is asked and what it answers: queries of several parts, pages, thresholds, near-duplicates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from revln.jobs.index_schemas import DEDUP_SCORE, MAX_DIM
from revln.jobs.schemas import (
    CollectionName,
    FilterJson,
    ImageHandle,
    ImageRef,
    ItemFailure,
    ItemId,
    JobResult,
    Parameters,
    Strict,
    Text,
    TextRead,
    Truncate,
    refuse_blank,
)

__all__ = [
    "AUTO",
    "NO_MATCH_SCORE",
    "Query",
    "QueryPart",
    "SearchInput",
    "SearchParameters",
    "SearchResult",
    "dedup_score",
]

MAX_K = 1_000
MAX_REACH = 10_000  # offset and k together: an index finds that many before a page is cut from them
MAX_QUERIES = 1_000
MAX_HITS = 100_000  # k times queries: every hit carries its item's text and metadata
AUTO = "auto"  # a min_score: what the model's calibration calls a match
NO_MATCH_SCORE = (
    "{} has no calibrated score of a match: give min_score as a number, or use a model whose config.json has "
    "match_min_score, which 'revln train' measures."
)


class QueryPart(Strict):
    """One part of a query: a text, an image, the id of an indexed item, or a vector; ``weight`` may be negative."""

    text: Text | None = None
    image: ImageRef | None = None
    id: ItemId | None = None
    vector: Annotated[list[float], Field(min_length=1, max_length=MAX_DIM)] | None = None
    weight: Annotated[float, Field(ge=-100, le=100)] = 1.0

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        return refuse_blank(text)

    @field_validator("weight")
    @classmethod
    def _not_nothing(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("a weight of 0 leaves the part out; remove it instead")
        return weight

    @field_validator("vector")
    @classmethod
    def _finite_and_not_zero(cls, vector: list[float] | None) -> list[float] | None:
        if vector is None:
            return None
        # hypot does not overflow, but the squares of whoever normalises it would: 1e200 squared is infinite.
        norm = math.hypot(*vector)
        if not 1e-12 <= norm <= 1e100:
            raise ValueError(f"a vector needs a norm between 1e-12 and 1e100; this one's is {norm:g}: scale it")
        return vector

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("text", "image", "id", "vector") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a query part needs exactly one of text, image, id, vector; got {' and '.join(given) or 'none'}"
            )
        return self


# Told apart by their JSON type, so that an error speaks of the one that was meant. The tags stand in an error's
# location; the parentheses mark them as no step into the body.
Query = Annotated[
    Annotated[QueryPart, Tag("(part)")]
    | Annotated[list[QueryPart], Field(min_length=1, max_length=32), Tag("(parts)")],
    Discriminator(lambda value: "(parts)" if isinstance(value, list) else "(part)"),
]


def _check_min_score(value: object) -> object:
    """One sentence for all that is wrong. True is no number here, though Python says it is 1."""
    if value == AUTO or (isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1):
        return value
    raise ValueError('must be a number from -1 to 1, a cosine, or "auto", what the model calls a match')


MinScore = Annotated[Literal["auto"] | Annotated[float, Field(ge=-1, le=1)], BeforeValidator(_check_min_score)]
# Told apart by their JSON type too.
Dedup = Annotated[
    Annotated[bool, Tag("(switch)")] | Annotated[float, Field(ge=0.5, le=1), Tag("(score)")],
    Discriminator(lambda value: "(switch)" if isinstance(value, bool) else "(score)"),
]


def dedup_score(dedup: bool | float) -> float | None:
    """The cosine from which two hits are one; None: they never are."""
    return (DEDUP_SCORE if dedup else None) if isinstance(dedup, bool) else dedup


class SearchParameters(Parameters):
    collection: CollectionName
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    offset: Annotated[int, Field(ge=0, le=MAX_REACH, description="Leave out this many of the best hits: a page.")] = 0
    filter: FilterJson | None = None
    min_score: MinScore | None = Field(
        None, description="Least cosine of a hit; auto: what the model's calibration calls a match."
    )
    dedup: Dedup = Field(
        False,
        description="Show near-duplicates as one hit, with the others' ids; a number is the cosine, true is 0.97.",
    )
    exclude_self: bool = Field(False, description="Leave out the items that the query names by id.")
    truncate: Truncate = None


class SearchInput(SearchParameters):
    """Find the ``k`` nearest items of a collection for each query; scores are cosines in [-1, 1]."""

    model_config = ConfigDict(
        **Strict.model_config,
        json_schema_extra={
            "examples": [
                {
                    "collection": "holiday",
                    "queries": [{"text": "a dog"}, [{"id": "dsc-1"}, {"text": "snow", "weight": -0.5}]],
                    "k": 5,
                }
            ]
        },
    )

    queries: Annotated[list[Query], Field(min_length=1, max_length=MAX_QUERIES)]

    @model_validator(mode="after")
    def _near_enough(self) -> Self:
        reach = MAX_K if self.dedup is not False else MAX_REACH
        if self.offset + self.k > reach:
            raise ValueError(f"offset {self.offset} and k {self.k} reach to hit {self.offset + self.k}; at most "
                             f"{reach:,} are looked at{' with dedup' if reach == MAX_K else ''}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _few_hits(self) -> Self:
        if (hits := self.k * len(self.queries)) > MAX_HITS:
            raise ValueError(f"{len(self.queries)} queries of k={self.k} may have {hits:,} hits; at most {MAX_HITS:,} "
                             "fit in one job: submit several")  # fmt: skip
        return self


# --- results -----------------------------------------------------------------------------------------------------


class Hit(BaseModel):
    id: str
    score: float
    text: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    image: ImageHandle | None = None
    duplicates: list[str] | None = Field(None, description="With dedup: the ids of the hits that this one stands for.")


class QueryResult(TextRead):
    query: int
    hits: list[Hit] | None = None
    error: ItemFailure | None = None


class SearchResult(JobResult):
    results: list[QueryResult]
    total: int
    collection: str
    seq: int

    @classmethod
    def page(cls, items: list[dict[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
        results = [
            {"query": item["index"], **{name: item[name] for name in QueryResult.model_fields if name in item}}
            for item in items
        ]
        return super().page(items, {**about, "results": results})
