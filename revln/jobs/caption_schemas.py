"""What a caption job is asked and what it answers."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from revln.jobs.schemas import (
    MAX_INLINE_ITEMS,
    SHA_EXAMPLE,
    CollectionName,
    FilterJson,
    ImageRef,
    Item,
    ItemResult,
    ItemsInput,
    ItemsParameters,
    JobResult,
)
from revln.jobs.text import storable

__all__ = ["CaptionInput", "CaptionItem", "CaptionParameters", "CaptionResult"]

MAX_NEW_TOKENS = 64  # of a caption; twice as many as the longest of Flickr8k's has
MAX_SEED = 2**53 - 1  # what every JSON reader keeps exactly


class CaptionItem(Item):
    """A picture to be described."""

    image: ImageRef


class CaptionParameters(ItemsParameters):
    collection: CollectionName | None = None
    filter: FilterJson | None = None
    neighbors: Annotated[int, Field(ge=1, le=16)] = 4
    evidence_min_score: Annotated[
        float | None, Field(ge=-1, le=1, description="Texts with a lower cosine are no evidence; else the model's own.")
    ] = None
    min_confidence: Annotated[
        float | None,
        Field(ge=0, le=1, description="Captions of a lower confidence are left out, and `caption_note` says so."),
    ] = None
    num_beams: Annotated[int, Field(ge=1, le=16, description="1: greedy.")] = 3
    num_captions: Annotated[int, Field(ge=1, le=16)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 24
    min_new_tokens: Annotated[int, Field(ge=0, le=MAX_NEW_TOKENS)] = 0
    temperature: Annotated[float, Field(ge=0, le=5, description="0: beam search; above: nucleus sampling.")] = 0.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="Sample among the fewest tokens that hold this probability.")
    ] = 0.9
    seed: Annotated[
        int, Field(ge=0, le=MAX_SEED, description="The same seed, picture and options give the same samples.")
    ] = 0
    length_penalty: Annotated[
        float, Field(ge=-5, le=5, description="A beam's score is divided by its length to this power.")
    ] = 1.0
    repetition_penalty: Annotated[
        float, Field(ge=1, le=5, description="Above 1: tokens that the caption already has get less likely.")
    ] = 1.0
    no_repeat_ngram_size: Annotated[
        int | None,
        Field(ge=0, le=16, description="No run of so many tokens twice in a caption; 0: any; else the model's own."),
    ] = None
    prompt: Annotated[
        str,
        Field(max_length=200, description="The caption continues it, and begins with it."),
        AfterValidator(storable),
    ] = ""


class CaptionInput(CaptionParameters, ItemsInput):
    """Describe each image; with a collection, prompted with the captions of its nearest items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"id": "dsc-1", "image": {"sha256": SHA_EXAMPLE}}], "collection": "holiday"}]
        }
    )

    items: Annotated[list[CaptionItem], Field(min_length=1, max_length=MAX_INLINE_ITEMS)] | None = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _something_to_filter(self) -> Self:
        if self.filter is not None and self.collection is None:
            raise ValueError(
                "a filter chooses among a collection's items; name the collection, or leave the filter out"
            )
        return self

    @model_validator(mode="after")
    def _something_to_retrieve(self) -> Self:
        if self.evidence_min_score is not None and self.collection is None:
            raise ValueError("evidence comes from a collection: name it, or leave evidence_min_score out")
        return self

    @model_validator(mode="after")
    def _room_for_the_least(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}: lower the "
                "first, or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.temperature == 0 and self.num_captions > self.num_beams:
            raise ValueError(
                f"beam search with num_beams={self.num_beams} gives at most {self.num_beams} captions, not "
                f"{self.num_captions}: raise num_beams, or set a temperature to sample"
            )
        return self


# --- results -----------------------------------------------------------------------------------------------------


class CaptionText(BaseModel):
    text: str
    log_prob: float
    confidence: float | None = Field(None, description="How likely it is right, in [0, 1]; null: not measured.")


class EvidenceText(BaseModel):
    id: str
    text: str
    score: float


class CaptionItemResult(ItemResult):
    captions: list[CaptionText] | None = None
    caption_note: str | None = Field(None, description="Why there is no caption, where `min_confidence` was given.")
    evidence: list[EvidenceText] | None = None
    evidence_note: str | None = Field(None, description="Why there is no evidence, where a collection was named.")


class CaptionResult(JobResult):
    items: list[CaptionItemResult]
    total: int
    model: str
    model_fingerprint: str
