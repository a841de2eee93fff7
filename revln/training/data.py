"""What training reads: captioned pictures, and captions without pictures.

Captions come in any form that `formats` knows. Pictures: a folder or a zip of files of the names in there. Extra
captions: a tab-separated file (gzip or not) with the columns ``image_id`` and ``caption``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import lzma
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from revln.errors import ImageError, ValidationFailed
from revln.images import ImageLimits, decode_image
from revln.training.formats import Example, read_examples

__all__ = ["Albums", "Example", "Pictures", "is_held_out", "read_captions", "read_extra_captions"]

# What a file may do when it is read and unpacked. zipfile: RuntimeError for a locked or an unknown way of packing,
# ValueError for an impossible name.
_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


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


def is_held_out(file: str, of: int | None) -> bool:
    """Whether a picture is one of the 1/``of`` that are watched and never trained on, by a hash of its file name.

    None: every picture is measured.
    """
    return of is None or zlib.crc32(file.encode()) % of == 0


def read_extra_captions(path: Path) -> list[tuple[str, ...]]:
    """Captions grouped by picture, in the file's order; blank ones are passed over.

    Raises:
        ValidationFailed: the file is missing, damaged, not UTF-8 or without the columns.
    """
    _need(path, "the extra captions")
    groups: dict[str, list[str]] = defaultdict(list)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if not {"image_id", "caption"} <= set(reader.fieldnames or ()):
                raise ValidationFailed(f"{path} needs the columns image_id and caption; it has {reader.fieldnames}")
            for row in reader:
                if text := (row["caption"] or "").strip():
                    groups[row["image_id"]].append(text)
    except UnicodeDecodeError as err:
        raise ValidationFailed(f"{path} is not UTF-8 text ({err}); save it as UTF-8, and as .gz if it is gzip") from err
    except (OSError, EOFError, zlib.error, csv.Error) as err:
        raise ValidationFailed(f"{path} cannot be read ({err}); give an undamaged TSV, as .gz if it is gzip") from err
    return [tuple(texts) for texts in groups.values()]


class Pictures:
    """Pictures by file name, from a folder or a zip, decoded as the service does. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            _need(path, "the pictures")
        self._folder = path
        try:
            self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        except _UNREADABLE as err:
            raise ValidationFailed(
                f"{path} is no zip that can be read ({err}); give --images a folder, or an undamaged zip, of pictures"
            ) from err

    def identity(self, files: Sequence[str]) -> list[str | int]:
        """What a cache of these pictures hangs on: the path, and when and how large the zip or each of the files was.

        Not the folder itself: its time says nothing of a file that was replaced in place, or in a folder within.
        """
        if self._zip is not None:
            stat = self._folder.stat()
            return [str(self._folder.resolve()), stat.st_size, stat.st_mtime_ns]
        digest = hashlib.sha256()
        for file in files:
            try:
                stat = (self._folder / file).stat()
            except (OSError, ValueError) as err:
                raise self._unreadable(file, err) from err
            digest.update(json.dumps([file, stat.st_size, stat.st_mtime_ns]).encode())
        return [str(self._folder.resolve()), digest.hexdigest()]

    def __getitem__(self, file: str) -> Image.Image:
        """RGB, upright and of full size.

        Raises:
            ValidationFailed: it is missing or damaged, or what the service refuses by its defaults (`ImageLimits`).
        """
        try:
            data = (self._folder / file).read_bytes() if self._zip is None else self._zip.read(file)
            return decode_image(data, ImageLimits())
        except (*_UNREADABLE, ImageError) as err:
            raise self._unreadable(file, err) from err

    def _unreadable(self, file: str, err: Exception) -> ValidationFailed:
        return ValidationFailed(
            f"the picture {file} cannot be read from {self._folder}: {err} (mend it, or leave it out of the captions)"
        )


class Albums:
    """Pictures of several folders and zips, each by the path of folder or zip and its file name: ``a.zip/0.png``."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._albums = {str(path): Pictures(path) for path in dict.fromkeys(paths)}

    def identity(self, files: Sequence[str]) -> list[list[str | int]]:
        """Return what a cache of these pictures hangs on."""
        inside: dict[str, list[str]] = {}
        for file in files:
            album, name = self._split(file)
            inside.setdefault(album, []).append(name)
        return [self._albums[album].identity(names) for album, names in inside.items()]

    def __getitem__(self, file: str) -> Image.Image:
        """Raises as `Pictures` does."""
        album, name = self._split(file)
        return self._albums[album][name]

    def _split(self, file: str) -> tuple[str, str]:
        album = max((path for path in self._albums if file.startswith(f"{path}/")), key=len)
        return album, file[len(album) + 1 :]


def _need(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValidationFailed(f"{path} is missing; name {what} with an option (revln train --help)")
