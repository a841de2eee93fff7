"""What a model hands out, checked before anybody keeps it: NaN is no answer, and JSON cannot say it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from revln.errors import ItemError
from revln.models.base import Caption, Model, Operation

__all__ = ["finished"]

# Of half precision; a vector that is further from length 1 has no direction, or was never normalized.
_LENGTH_TOLERANCE = 0.01


def finished(model: Model, operation: Operation, raw: Any) -> Any:
    """Return ``model.finish(raw)``, or the ItemError of this one item; an error in the place of ``raw`` stays."""
    if isinstance(raw, ItemError):
        return raw
    result = model.finish(operation, raw)
    wrong = _wrong_caption(result) if operation is Operation.CAPTION else _wrong_vector(result, model.info.dim)
    if wrong is None:
        return _storable(result) if operation is Operation.CAPTION else result
    return ItemError(
        f"Model {model.info.name} ({model.dtype} on {model.device}) {wrong}. Send another item; if all end like "
        'this, serve it with "dtype": "float32", or fetch its files again.'
    )


def _storable(captions: tuple[Caption, ...]) -> tuple[Caption, ...]:
    """Put U+FFFD in the place of U+0000, which a byte-level tokenizer can give and PostgreSQL does not keep."""
    return tuple(replace(one, text=one.text.replace("\0", "\ufffd")) for one in captions)


def _wrong_vector(result: Any, dim: int | None) -> str | None:
    vector = np.asarray(result)
    if vector.shape != (dim,):
        return f"gave a vector of shape {vector.shape} instead of {dim} numbers"
    if not np.isfinite(vector).all():
        place = int(np.flatnonzero(~np.isfinite(vector))[0])
        return f"gave {vector[place]} as number {place} of the vector"
    length = float(np.linalg.norm(vector.astype(np.float64)))  # the square of a large float32 is infinite
    return None if abs(length - 1) <= _LENGTH_TOLERANCE else f"gave a vector of length {length:g} instead of 1"


def _wrong_caption(captions: tuple[Caption, ...]) -> str | None:
    wrong = [one.log_prob for one in captions if not math.isfinite(one.log_prob)]
    return f"gave a caption of log-probability {wrong[0]}" if wrong else None
