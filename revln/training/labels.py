"""Label files: pictures of several sources, with names or with captions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revln.errors import ValidationFailed

__all__ = ["NAMED", "LabelRow", "read_label_file"]

# How a name is told: the first is what `revln eval --labels` asks by, and what half of training's names stand in.
NAMED = ("a photo of a {}.", "{}", "a picture of {}", "a close-up of a {}")
_COUNT = re.compile(r"^\d+ ")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One picture. It has ``labels``, without the number of things that they count, or ``captions``."""

    file: str
    source: str
    split: str
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def read_label_file(path: Path) -> list[LabelRow]:
    """Read ``{"file", "source", "split", "labels": [str, …] or "captions": [str, …]}``, one a line.

    Raises:
        ValidationFailed: the file is missing, not UTF-8 or empty, or a line is malformed.
    """
    if not path.is_file():
        raise ValidationFailed(f"{path} is missing; name the label file with --labels")
    try:
        rows = list(_rows(path))
    except UnicodeDecodeError as err:
        raise ValidationFailed(f"{path} is not UTF-8 text ({err}); unpack it, or save it as UTF-8") from err
    if not rows:
        raise ValidationFailed(f"{path} holds no picture; give a line of JSON for each")
    return rows


def _rows(path: Path) -> Iterator[LabelRow]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
                file, source, split = (_text(row[name]) for name in ("file", "source", "split"))
                labels, captions = (tuple(map(_text, _list(row.get(name, [])))) for name in ("labels", "captions"))
            except (ValueError, KeyError, TypeError) as err:
                raise ValidationFailed(
                    f"{place}: needs file, source, split, and labels or captions as a list of texts ({err!r})"
                ) from err
            if bool(labels) == bool(captions):
                raise ValidationFailed(f"{place}: a picture has either labels or captions; give one of the two")
            yield LabelRow(file, source, split, tuple(_COUNT.sub("", label) for label in labels), captions)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r:.60} is no text, or blank")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is no list")
    return value
