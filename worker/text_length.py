"""Texts that are longer than a model reads: said with their item, or refused where the job asks for that."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from revln.errors import ItemError, ItemInvalid
from revln.models.base import Counting, ModelInfo
from worker.embedding import Content
from worker.models.loading import LoadedModel

__all__ = ["Read", "measured"]

# What a tokenizer may add: tokens at both ends, and a space before the first word.
_ADDED = 8

# What is said of a text in its item's result; nothing of one that is read whole.
Read = dict[str, Any]


def measured(
    loaded: LoadedModel, contents: Sequence[Content | ItemError], truncate: bool | None
) -> tuple[list[Content | ItemError], list[Read]]:
    """The contents, and what is said of each; with ``truncate`` False, one that is too long is an error."""
    info = loaded.model.info
    reads = [_read(loaded, content) for content in contents]
    if truncate is not False:
        return list(contents), reads
    return [
        _too_long(info, read["tokens"]) if read else content for content, read in zip(contents, reads, strict=True)
    ], [{} for _ in reads]


def _read(loaded: LoadedModel, content: Content | ItemError) -> Read:
    info, model = loaded.model.info, loaded.model
    if isinstance(content, ItemError) or content.text is None or info.max_tokens is None:
        return {}
    if _surely_short(info, content.text) or not isinstance(model, Counting):
        return {}
    count = model.count_tokens(content.text)
    return {"truncated": True, "tokens": count} if count > info.max_tokens else {}


def _surely_short(info: ModelInfo, text: str) -> bool:
    """Whether it cannot be cut, without reading it: no tokenizer makes more tokens than bytes."""
    assert info.max_tokens is not None
    whole = (info.prompts.before(text) if info.prompts else "") + text
    # The form that tokenizers bring texts into may be longer than what came.
    return len(unicodedata.normalize("NFKC", whole).encode()) + _ADDED <= info.max_tokens


def _too_long(info: ModelInfo, tokens: int) -> ItemError:
    return ItemInvalid(
        f"The text has {tokens:,} tokens, and model {info.name} reads {info.max_tokens:,}. Shorten it, split it into "
        "several items, or leave out truncate to have it cut."
    )
