"""What training reads: captioned pictures, and captions without pictures.

``captions.jsonl``: one ``{"file", "split", "captions": [str, …]}`` a line. Pictures: a folder or a zip of files of
those names. Extra captions: a tab-separated file (gzip or not) with the columns ``image_id`` and ``caption``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from revln.errors import ValidationFailed

__all__ = ["Example", "Pictures", "read_captions", "read_extra_captions"]


@dataclass(frozen=True, slots=True)
class Example:
    """One picture's file name and its captions."""

    file: str
    captions: tuple[str, ...]


def read_captions(path: Path, split: str) -> list[Example]:
    """The examples of one split, in the file's order.

    Raises:
        ValidationFailed: the file is missing, a line is malformed, or the split is empty.
    """
    _need(path, "the captions")
    examples, seen = [], set()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                seen.add(row["split"])
                if row["split"] == split:
                    examples.append(Example(row["file"], tuple(str(text) for text in row["captions"])))
            except (ValueError, KeyError, TypeError) as err:
                raise ValidationFailed(f"{path}, line {number}: needs file, split and captions ({err!r})") from err
    if not examples:
        raise ValidationFailed(f"{path} holds nothing of split '{split}'; its splits are {sorted(seen)}")
    return examples


def read_extra_captions(path: Path) -> list[tuple[str, ...]]:
    """Captions grouped by picture, in the file's order."""
    _need(path, "the extra captions")
    groups: dict[str, list[str]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"image_id", "caption"} <= set(reader.fieldnames or ()):
            raise ValidationFailed(f"{path} needs the columns image_id and caption; it has {reader.fieldnames}")
        for row in reader:
            if text := (row["caption"] or "").strip():
                groups[row["image_id"]].append(text)
    return [tuple(texts) for texts in groups.values()]


class Pictures:
    """Pictures by file name, from a folder or a zip. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            _need(path, "the pictures")
        self._folder = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)

    def __getitem__(self, file: str) -> Image.Image:
        try:
            if self._zip is None:
                return Image.open(self._folder / file).convert("RGB")
            return Image.open(io.BytesIO(self._zip.read(file))).convert("RGB")
        except (OSError, KeyError) as err:
            raise ValidationFailed(f"the picture {file} cannot be read from {self._folder}: {err}") from err


def _need(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValidationFailed(f"{path} is missing; name {what} with an option (revln train --help)")
