"""What a client may send and what it gets back, of all kinds; and what an operation declares of its jobs.

Everything here is pydantic at the edge of the house: unknown fields are refused, every number has a limit, and the
same classes make the request body of the API, its documentation and the check that a worker makes of each line of a
manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from revln.jobs.filters import FilterError, parse_filter
from revln.jobs.text import storable

__all__ = [
    "LONG_S",
    "MAX_INLINE_ITEMS",
    "CollectionName",
    "EmbedInput",
    "EmbedParameters",
    "EmbedResult",
    "FilterJson",
    "ImageHandle",
    "ImageRef",
    "Item",
    "ItemFailure",
    "ItemId",
    "ItemResult",
    "ItemsInput",
    "ItemsParameters",
    "JobResult",
    "ManifestRef",
    "Metadata",
    "ModelOf",
    "Operation",
    "Parameters",
    "Strict",
    "Text",
    "TextRead",
    "Truncate",
    "refuse_blank",
]

LONG_S = 4 * 3600.0  # under REVLN_VISIBILITY_TIMEOUT_S, after which Redis delivers its message again
MAX_TEXT_CHARS = 20_000  # about 4,000 words; a text encoder reads a few dozen and says so in its model card
MAX_INLINE_ITEMS = 10_000  # above that, send a manifest: one request stays under the body limit
MAX_ID_CHARS = 512
MAX_METADATA_KEYS = 64
MAX_METADATA_BYTES = 16_384  # as JSON; it travels with every hit and every listing
MAX_METADATA_DEPTH = 16
MAX_METADATA_INTEGER = 10**300  # filters compare numbers as 64-bit floats


def _small(metadata: Any) -> Any:
    """Refuse metadata that is nested too deeply, too large, or not storable, before anything recurses into it."""
    if isinstance(metadata, dict):
        _check_json(metadata, MAX_METADATA_DEPTH)
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"metadata of {size:,} bytes as JSON; at most {MAX_METADATA_BYTES:,} are kept: shorten it")
    return metadata


def _check_json(value: Any, depth_left: int) -> None:
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, int) and abs(value) > MAX_METADATA_INTEGER:
        raise ValueError("an integer of more than 300 digits in the metadata; send it as a text")
    elif isinstance(value, dict | list):
        if not depth_left:
            raise ValueError(f"metadata nested more than {MAX_METADATA_DEPTH} deep; flatten it")
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_json(inner, depth_left - 1)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Lower-case hexadecimal SHA-256.")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(storable)]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(storable)]
CollectionName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Lower-case letters, digits, '-' and '_'.")
]
Metadata = Annotated[dict[str, JsonValue], Field(max_length=MAX_METADATA_KEYS), BeforeValidator(_small)]


def _filter(raw: Any) -> Any:
    try:
        parse_filter(raw)
    except FilterError as err:
        # The API adds the pointer to the field's own.
        raise PydanticCustomError("filter", "{detail}", {"detail": err.detail, "pointer": err.pointer}) from err
    return raw


FilterJson = Annotated[
    dict[str, Any],
    BeforeValidator(_filter),
    Field(description="A filter on the items' metadata, see docs/search.md.", examples=[{"year": {"gte": 2020}}]),
]

SHA_EXAMPLE = "0f" * 32  # stands for an uploaded picture or manifest in the examples


class Strict(BaseModel):
    """Refuses unknown fields, NaN and the infinities."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, frozen=True)


class ImageRef(Strict):
    """A picture: exactly one of its URL, the SHA-256 of uploaded bytes, or the bytes in base64."""

    url: Annotated[str, Field(max_length=4_096), AfterValidator(storable)] | None = None
    sha256: Sha256 | None = None
    base64: str | None = Field(None, description="In lines, URL-safe, unpadded or as a data URI, if you have it so.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("url", "sha256", "base64") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"an image needs exactly one of url, sha256, base64; got {' and '.join(given) or 'none'}")
        return self


class Item(Strict):
    """One thing to work on. With both image and text, the vector is the image's and the text is its caption."""

    id: ItemId | None = None
    image: ImageRef | None = None
    text: Text | None = None
    metadata: Metadata = Field(default_factory=dict)

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        return refuse_blank(text)

    @model_validator(mode="after")
    def _some_content(self) -> Self:
        if self.image is None and self.text is None:
            raise ValueError("an item needs an image, a text, or both")
        return self


class ManifestRef(Strict):
    """An uploaded JSON-lines file of items (`POST /v1/manifests`), for jobs of any length."""

    sha256: Sha256


class Parameters(BaseModel):
    """A job's input without its items: what its row keeps, and what its handler is given.

    A row of an older version has the defaults of what came later; fields of a newer version are left out.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, allow_inf_nan=False, frozen=True)

    @property
    def manifest_sha256(self) -> str | None:
        """The manifest that holds the items, if they are not in the chunks."""
        return None

    @property
    def brings_vectors(self) -> bool:
        """Whether the items' vectors come with them."""
        return False


class ItemsParameters(Parameters):
    manifest: ManifestRef | None = None

    @property
    def manifest_sha256(self) -> str | None:
        return self.manifest.sha256 if self.manifest else None


class ItemsInput(ItemsParameters):
    """Items in the body, or in an uploaded manifest."""

    model_config = Strict.model_config

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.items is None) == (self.manifest is None):
            raise ValueError("give either items or manifest, not both and not neither")
        return self


Truncate = Annotated[
    bool | None,
    Field(description="False: a text that is longer than the model reads is an error, instead of being cut."),
]


class EmbedParameters(ItemsParameters):
    input_type: Literal["document", "query"] | None = Field(
        None, description="Which of a sentence encoder's prompts stands before the texts; document if it is left out."
    )
    truncate: Truncate = None


class EmbedInput(EmbedParameters, ItemsInput):
    """Turn each item into a unit-norm vector of the model's joint space."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"text": "a dog on a beach"}, {"image": {"sha256": SHA_EXAMPLE}}]}]}
    )


def refuse_blank(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("a text needs at least one character that is not white space")
    return text


class ModelOf(StrEnum):
    """Which model a job runs on, and which of its two fingerprints the job carries."""

    VECTORS = auto()  # the collection's, else the one named, else the default; the fingerprint of its joint space
    NEXT = auto()  # the one named, which is to replace the collection's; the fingerprint of its joint space
    WHOLE = auto()  # one that captions, whatever made the collection; the fingerprint of the whole model


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that jobs do: all that a kind does, or one operation of a kind that has several.

    Attributes:
        name: names its handler in ``worker/handlers/registry.py``.
        parameters: what its jobs keep of their input, and its handler is given.
        items_field: the input's field that holds what is cut into chunks. A job without it and without a manifest has
            one chunk of one item, None: what there is to be done is known when it runs.
        chunk_items: items in a chunk, the unit of delivery, lease, retry and progress. Large enough that Celery's
            2-4 ms a message vanish, small enough that a chunk ends well inside a lease and a crash repeats little.
        written_chunk_items: the same where items bring their vectors and are only written down.
        timeout_s: how long one chunk may run before it is given up.
        open_ended: its result is a report of any length, not one entry for each item.
        model: which model it runs on.
        needs_model: False if it can be done in a collection of the user's own vectors.
        changes_collection: workers that hold the collection's index are told when a chunk has ended.
        makes_vectors: each entry of its result has a vector.
    """

    name: str
    parameters: type[Parameters]
    items_field: str = "items"
    chunk_items: int = 64
    written_chunk_items: int | None = None
    timeout_s: float = 600.0
    open_ended: bool = False
    model: ModelOf = ModelOf.VECTORS
    needs_model: bool = False
    changes_collection: bool = False
    makes_vectors: bool = False

    @property
    def runs_long(self) -> bool:
        return self.timeout_s >= LONG_S


# --- results -----------------------------------------------------------------------------------------------------


class ItemFailure(BaseModel):
    """Why one item could not be done; ``code`` is stable."""

    code: str
    detail: str
    retryable: bool = False


class ItemResult(BaseModel):
    index: int = Field(description="The item's place in the order in which it was given, from 0.")
    id: str | None = None
    error: ItemFailure | None = None


class TextRead(BaseModel):
    """How a text that went into a vector was read."""

    truncated: bool | None = Field(None, description="True: the text is longer than the model reads, and was cut.")
    tokens: int | None = Field(None, description="Of a text that was cut: how many it has, the prompt's included.")


class EmbedItemResult(ItemResult, TextRead):
    embedding: list[float] | None = None


class JobResult(BaseModel):
    """One page of a job's result."""

    next_offset: int | None = Field(None, description="Where to go on: what is between here and there is not done.")

    @classmethod
    def page(cls, items: list[dict[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
        """Return a page of this form, given the items as their chunks keep them and what the job says of itself."""
        return {name: items if name == "items" else about[name] for name in cls.model_fields}


class EmbedResult(JobResult):
    items: list[EmbedItemResult]
    total: int
    dim: int | None = Field(description="Null only of a page without vectors, while the model cannot be read.")
    model: str
    model_fingerprint: str


class ImageHandle(BaseModel):
    sha256: str
