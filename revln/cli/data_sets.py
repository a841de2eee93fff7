"""Options of `revln eval` that may be given several times, as ``NAME=VALUE``: data sets, and what belongs to each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from revln.errors import ValidationFailed

if TYPE_CHECKING:
    from revln.training.evaluation.options import DataSet, StoreFile

__all__ = ["LABELS", "ByName", "data_sets", "label_set", "names_of", "store_files"]

# The name by which --images and --split mean the file of --labels.
LABELS = "labels"
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ByName:
    """The values of one option: those for one name each, and the one for all that have none of their own."""

    named: dict[str, str]
    general: str | None

    @classmethod
    def read(cls, option: str, values: Sequence[str], known: Sequence[str]) -> ByName:
        """Raises ValidationFailed: a name is not of ``known``, or is given twice."""
        named: dict[str, str] = {}
        for name, value in map(_split, values):
            if name is not None and name not in known:
                raise ValidationFailed(f"{option} {name}={value}: there is no data set {name}, only {', '.join(known)}")
            if (name or "") in named:
                raise ValidationFailed(f"{option} is given twice for {name or 'all data sets'}; give it once")
            named[name or ""] = value
        return cls(named, named.pop("", None))

    def of(self, name: str) -> str | None:
        return self.named.get(name, self.general)


def data_sets(data: Sequence[str], images: ByName, split: ByName, held_out: ByName) -> tuple[DataSet, ...]:
    """Return the data sets in the order given. Pictures lie in ``images.zip`` beside the file if no option says where.

    Raises:
        ValidationFailed: --held-out is no number from 1.
    """
    return tuple(_data_set(name, file, images, split, held_out) for name, file in _files("--data", data))


def label_set(file: Path, images: ByName, split: ByName) -> DataSet:
    return _data_set(LABELS, file, images, split, ByName({}, None))


def store_files(stores: Sequence[str], split: str) -> tuple[StoreFile, ...]:
    from revln.training.evaluation.options import StoreFile

    return tuple(StoreFile(name, file, split) for name, file in _files("--store", stores))


def names_of(data: Sequence[str]) -> list[str]:
    return [name for name, _ in _files("--data", data)]


def _data_set(name: str, file: Path, images: ByName, split: ByName, held_out: ByName) -> DataSet:
    from revln.training.evaluation.options import DataSet

    of = held_out.of(name)
    if of is not None and not (of.isdecimal() and int(of)):
        raise ValidationFailed(
            f"--held-out {of} is no number from 1; 3 measures every third picture, by its name's hash"
        )
    where = images.of(name)
    return DataSet(
        name=name,
        file=file,
        images=Path(where) if where else file.parent / "images.zip",
        split=split.of(name) or "dev",
        held_out=None if of is None else int(of),
    )


def _files(option: str, values: Sequence[str]) -> list[tuple[str, Path]]:
    """Name what has no name by its folder."""
    files = [(name or Path(file).resolve().parent.name, Path(file)) for name, file in map(_split, values)]
    names = [name for name, _ in files]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValidationFailed(f"two of {option} are called {double}; name them: {option} NAME=FILE")
    return files


def _split(value: str) -> tuple[str | None, str]:
    """A file that is there is no NAME=VALUE, whatever it is called."""
    match = None if Path(value).exists() else _NAMED.fullmatch(value)
    return (match[1], match[2]) if match else (None, value)
