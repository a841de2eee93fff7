"""What `revln eval` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DataSet", "EvalOptions", "StoreFile"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A file of captioned or labelled pictures, where the pictures are, and which of them are measured."""

    name: str
    file: Path
    images: Path
    split: str
    held_out: int | None = None  # only the pictures that `is_held_out` of so many; None: the whole split


@dataclass(frozen=True, slots=True)
class StoreFile:
    """Captions to retrieve evidence from: any form of captioned pictures, or a TSV of captions without pictures."""

    name: str
    file: Path
    split: str


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """One field for each thing that the options of `revln eval` say together."""

    data: tuple[DataSet, ...]  # captioned pictures; the first set's figures stand at the top of the report
    stores: tuple[StoreFile, ...] = ()
    labels: DataSet | None = None
    limit: int | None = None  # pictures of each data set
    captions: bool = True
    evidence: bool = False  # whether the decoder reads it: told and misled
    examples: int = 0  # captions of each data set to be returned for reading
    num_beams: int = 3
