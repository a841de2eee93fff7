"""Run a model over many items, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from revln.errors import ItemError
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Model, Operation
from revln.models.outputs import finished
from revln.progress_bar import tracked

__all__ = ["EMBEDS", "PicturesByName", "Vectors", "embed_pictures", "embed_texts", "run_model", "write_captions"]

EMBEDS = {Operation.EMBED_IMAGE, Operation.EMBED_TEXT}
Vectors = npt.NDArray[np.float32]


class PicturesByName(Protocol):
    """`revln.training.data.Pictures`, or several of them."""

    def __getitem__(self, file: str) -> Image.Image: ...


def run_model(
    model: Model,
    operation: Operation,
    items: Sequence[Any],
    pictures: PicturesByName | None = None,
    quiet: bool = False,
) -> list[Any]:
    """All items in batches, in order. Items are file names where ``pictures`` is given for an image operation."""
    out: list[Any] = []
    size = model.max_batch(operation)
    for start in tracked(range(0, len(items), size), operation.value, hidden=quiet):
        batch = items[start : start + size]
        ready = [model.prepare(operation, item if pictures is None else pictures[item]) for item in batch]
        out += [_right(model, operation, raw) for raw in model.forward(operation, ready)]
    return out


def _right(model: Model, operation: Operation, raw: Any) -> Any:
    """Raises ItemError for an output with NaN: no measure is made of it."""
    result = finished(model, operation, raw)
    if isinstance(result, ItemError):
        raise result
    return result


def embed_pictures(model: Model, files: Sequence[str], pictures: PicturesByName) -> Vectors:
    return np.stack(run_model(model, Operation.EMBED_IMAGE, files, pictures))


def embed_texts(model: Model, texts: Sequence[str]) -> Vectors:
    return np.stack(run_model(model, Operation.EMBED_TEXT, texts))


def write_captions(
    model: Model,
    files: Sequence[str],
    pictures: PicturesByName,
    evidence: Sequence[tuple[Evidence, ...]],
    num_beams: int,
) -> list[str]:
    """Return the best caption of each picture, with what was retrieved for it."""
    decoding = CaptionOptions(num_beams=num_beams)
    texts: list[str] = []
    size = model.max_batch(Operation.CAPTION)
    # In small steps, so that a thousand decoded pictures are never in memory at once.
    for start in tracked(range(0, len(files), size), "caption"):
        rows = range(start, min(start + size, len(files)))
        requests = [CaptionRequest(pictures[files[i]], evidence[i], options=decoding) for i in rows]
        ready = [model.prepare(Operation.CAPTION, request) for request in requests]
        texts += [_right(model, Operation.CAPTION, raw)[0].text for raw in model.forward(Operation.CAPTION, ready)]
    return texts
