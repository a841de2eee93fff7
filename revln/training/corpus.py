"""All that a run learns from and is measured on: captioned and labelled pictures of several files, and texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from revln.errors import ValidationFailed
from revln.training.data import Albums, Example, is_held_out, read_captions, read_extra_captions
from revln.training.labels import NAMED, read_label_file
from revln.training.options import TrainOptions

__all__ = ["Corpus", "Photo", "read_corpus"]


@dataclass(frozen=True, slots=True)
class Photo:
    """One picture: by its path in `Albums`, of the source whose weight it has. It has captions or labels."""

    file: str
    source: str
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Its captions; of a labelled picture a sentence for each of its names."""
        return self.captions or tuple(NAMED[0].format(label) for label in self.labels)


@dataclass(frozen=True)
class Corpus:
    """``captioned`` and ``labelled`` are trained on, in this order wherever there is one number for a picture."""

    pictures: Albums
    captioned: Sequence[Photo]
    labelled: Sequence[Photo]
    dev: Sequence[Photo]  # with captions
    dev_labelled: Sequence[Photo]
    extra: Sequence[tuple[str, ...]]  # captions without a picture here, by their picture
    weights: Mapping[str, float] = field(default_factory=dict)  # of sources; 1 for those that it does not name

    @cached_property
    def photos(self) -> Sequence[Photo]:
        return [*self.captioned, *self.labelled]

    @cached_property
    def names(self) -> Mapping[str, list[str]]:
        """The names of each source of labelled pictures."""
        found: dict[str, set[str]] = {}
        for photo in (*self.labelled, *self.dev_labelled):
            found.setdefault(photo.source, set()).update(photo.labels)
        return {source: sorted(names) for source, names in sorted(found.items())}

    @cached_property
    def told(self) -> Sequence[tuple[str, ...]]:
        """Captions by their picture, those without a picture first."""
        return [*self.extra, *(photo.captions for photo in self.captioned)]

    def weight(self, photos: Sequence[Photo]) -> npt.NDArray[np.float64]:
        """How often each is seen in a pass."""
        return np.array([self.weights.get(photo.source, 1.0) for photo in photos], dtype=np.float64)


def read_corpus(options: TrainOptions) -> Corpus:
    """Read every file that the options name.

    Raises:
        ValidationFailed: a file is missing or malformed, there is nothing to train on, or an option names no source.
    """
    if not options.data and not options.labels:
        raise ValidationFailed("there are no pictures to train on; give --data, --labels or both")
    images = _images("--images", "--data", options.images, options.data)
    label_images = _images("--label-images", "--labels", options.label_images, options.labels)
    captioned: list[Photo] = []
    dev: list[Photo] = []
    for path, folder in zip(options.data, images, strict=True):
        captioned += _photos(read_captions(path, options.split_train), folder, _source(path))
    if options.data:
        examples = read_captions(options.data_dev or options.data[0], options.split_dev)
        if options.data_dev is None and examples[0].split is None:
            raise ValidationFailed(
                f"{options.data[0]} knows no splits; name the captions of the dev split by --data-dev"
            )
        dev += _photos(examples, images[0], _source(options.data[0]))
    labelled: list[Photo] = []
    dev_labelled: list[Photo] = []
    for path, folder in zip(options.labels, label_images, strict=True):
        for row in read_label_file(path):
            photo = Photo(f"{folder}/{row.file}", row.source, row.captions, row.labels)
            held_out = bool(row.captions and options.held_out) and is_held_out(row.file, options.held_out)
            if row.split == options.split_dev or held_out:
                (dev if row.captions else dev_labelled).append(photo)
            elif row.split == options.split_train:
                (captioned if row.captions else labelled).append(photo)
    weights = _weights(options, {photo.source for photo in (*captioned, *labelled)})
    extra = read_extra_captions(options.extra_captions) if options.extra_captions else []
    mine = {text for photo in dev for text in photo.captions}
    # The same captions come in several files: those that are measured on are not trained on.
    extra = [group for group in extra if mine.isdisjoint(group)]
    if not captioned and not labelled:
        raise ValidationFailed(f"no picture is of split '{options.split_train}'; name another with --split-train")
    return Corpus(Albums([*images, *label_images]), captioned, labelled, dev, dev_labelled, extra, weights)


def _images(option: str, of: str, given: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    if len(given) == 1:
        return [given[0]] * len(files)
    if given and len(given) != len(files):
        raise ValidationFailed(
            f"{option} is given {len(given)} times for {len(files)} {of}; give one for all, or one for each in order"
        )
    return list(given) or [path.parent / "images.zip" for path in files]


def _source(path: Path) -> str:
    """What `--weight` calls a file of captions: its folder."""
    return path.resolve().parent.name


def _photos(examples: Sequence[Example], folder: Path, source: str) -> list[Photo]:
    return [Photo(f"{folder}/{example.file}", source, example.captions) for example in examples]


def _weights(options: TrainOptions, sources: set[str]) -> dict[str, float]:
    weights = dict(options.weights)
    if unknown := sorted(weights.keys() - sources):
        raise ValidationFailed(f"--weight {unknown[0]}: there is no such source, only {', '.join(sorted(sources))}")
    return weights
