"""What training reads: captioned pictures, and captions without pictures.

Captions come in any form that `formats` knows. Pictures: a folder or a zip of files of the names in there. Extra
captions: a tab-separated file (gzip or not) with the columns ``image_id`` and ``caption``.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections import defaultdict
from pathlib import Path

from PIL import Image

from revln.errors import ValidationFailed
from revln.training.formats import Example, read_examples

__all__ = ["Example", "Pictures", "read_captions", "read_extra_captions"]


def read_captions(path: Path, split: str) -> list[Example]:
    """The examples of one split, in the file's order; all of them where the form of the file knows no splits.

    Raises:
        ValidationFailed: the file is missing or malformed, the split is empty, or a picture has no captions.
    """
    _need(path, "the captions")
    examples = read_examples(path)
    # Karpathy's files set apart those that belong to train once val and test are taken.
    wanted = {split, "restval"} if split == "train" else {split, "val"} if split == "dev" else {split}
    mine = [example for example in examples if example.split is None or example.split in wanted]
    if not mine:
        raise ValidationFailed(
            f"{path} holds nothing of split '{split}'; its splits are {sorted({str(each.split) for each in examples})}"
        )
    bare = next((example.file for example in mine if not example.captions), None)
    if bare is not None:
        raise ValidationFailed(f"{path}: the picture {bare} has no captions; leave it out")
    return mine


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

    def identity(self) -> list[str | int]:
        """What a cache of the pictures hangs on: the path, and when and how large the folder or the zip was."""
        stat = self._folder.stat()
        return [str(self._folder.resolve()), stat.st_size, stat.st_mtime_ns]

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
