"""What of a job only its model, its collection or the settings can tell to be wrong; by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from api.problems import invalid
from revln.db.collections.collections import Collection
from revln.db.jobs.submit import Inline, NewChunk, Range
from revln.errors import FingerprintMismatch
from revln.jobs.caption_schemas import CaptionParameters
from revln.jobs.index_schemas import IndexParameters
from revln.jobs.schemas import Operation, Parameters
from revln.jobs.search_schemas import AUTO, NO_MATCH_SCORE, SearchParameters
from revln.models.base import ModelInfo
from revln.settings import Settings

__all__ = ["CHECKS", "Submission", "parts"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that is cut into chunks, before anything of it is written."""

    operation: Operation
    parameters: Parameters
    chunks: list[NewChunk]
    info: ModelInfo | None
    collection: Collection | None

    @property
    def total(self) -> int:
        return sum(chunk.n_items for chunk in self.chunks)

    @property
    def items(self) -> list[Any]:
        """Those that came in the body."""
        return [item for chunk in self.chunks if isinstance(chunk.source, Inline) for item in chunk.source.items]

    @property
    def manifest_bytes(self) -> int:
        last = self.chunks[-1].source
        return last.offset + last.length if isinstance(last, Range) else 0

    @property
    def pointer(self) -> str:
        """Where in the body its items are, or the manifest that has them."""
        return f"/input/{self.operation.items_field if self.parameters.manifest_sha256 is None else 'manifest'}"


def parts(items: list[Any], pointer: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Items, and the parts of queries that have several, each with its JSON pointer; not the ids of a delete."""
    for number, item in enumerate(items):
        if isinstance(item, list):
            yield from parts(item, f"{pointer}/{number}")
        elif isinstance(item, dict):
            yield item, f"{pointer}/{number}"


def _check_index(new: Submission, _: Settings) -> None:
    asked, collection = new.parameters, new.collection
    assert isinstance(asked, IndexParameters)
    assert collection is not None
    if asked.vectors_of is not None and asked.vectors_of != collection.model_fingerprint:
        raise FingerprintMismatch(
            f"Collection {collection.name!r} holds {collection.holds}; the items' vectors are of {asked.vectors_of}."
        )


def _check_search(new: Submission, _: Settings) -> None:
    asked, info, collection = new.parameters, new.info, new.collection
    assert isinstance(asked, SearchParameters)
    assert collection is not None
    if asked.min_score == AUTO and (info is None or info.match_min_score is None):
        of = f"Model {info.name}" if info else "A collection of your own vectors"
        raise invalid("/input/min_score", NO_MATCH_SCORE.format(of))
    for part, place in parts(new.items, "/input/queries"):
        _check_query(part, place, collection)


def _check_query(part: dict[str, Any], place: str, collection: Collection) -> None:
    vector = part.get("vector")
    if vector is not None and len(vector) != collection.dim:
        detail = f"{len(vector)} dimensions; vectors of collection {collection.name!r} have {collection.dim}"
        raise invalid(f"{place}/vector", detail)
    unread = next((name for name in ("text", "image") if name in part), None)
    if unread and not collection.has_model:
        detail = f"collection {collection.name!r} holds {collection.holds} and has no model to read this with"
        raise invalid(f"{place}/{unread}", f"{detail}; search it by vector or by id")


def _check_caption(new: Submission, settings: Settings) -> None:
    """Quotas count items, and one item may be a thousand times the work of another."""
    asked, most = new.parameters, settings.max_caption_tokens
    assert isinstance(asked, CaptionParameters)
    if asked.min_confidence is not None and (new.info is None or not new.info.has_confidence):
        name = new.info.name if new.info else "of this job"
        raise invalid(
            "/input/min_confidence",
            f"captions of model {name} have no confidence: leave min_confidence out, or use a model whose config.json "
            "has caption_confidence, which 'revln train' measures",
        )
    rows = "num_captions" if asked.temperature else "num_beams"
    tokens = new.total * getattr(asked, rows) * asked.max_new_tokens
    if tokens > most:
        raise invalid(
            "/input",
            f"{new.total:,} items, {rows}={getattr(asked, rows)} and max_new_tokens={asked.max_new_tokens} may take "
            f"{tokens:,} tokens; at most {most:,} are generated in one job (REVLN_MAX_CAPTION_TOKENS): lower one of "
            "them, or split the job",
        )


CHECKS: dict[str, Callable[[Submission, Settings], None]] = {
    "index": _check_index,
    "search": _check_search,
    "caption": _check_caption,
}
