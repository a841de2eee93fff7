"""Captions to retrieve evidence from, and what each of many pictures finds there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from revln.errors import ValidationFailed
from revln.models.base import Evidence, Model
from revln.training.data import Example, read_captions, read_extra_captions
from revln.training.evaluation.options import StoreFile
from revln.training.evaluation.running import Vectors, embed_texts

__all__ = ["Store"]

# Retrieved captions a picture; the model shows as many of them to its decoder as it was trained with.
_EVIDENCE = 16
_TABLES = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Store:
    """A store's captions by picture, and the model that finds evidence in it. Its vectors are computed once.

    Attributes:
        by_text: its pictures have no names that data sets know, so a picture's own captions are found by their words.
    """

    name: str
    groups: Sequence[Example]
    retriever: Model
    by_text: bool = False

    @classmethod
    def read(cls, file: StoreFile, retriever: Model) -> Store:
        """Raises ValidationFailed: the file is missing or malformed, or it tells of one picture alone."""
        by_text = file.file.name.endswith(_TABLES)
        if by_text:
            groups = [Example(str(i), texts) for i, texts in enumerate(read_extra_captions(file.file))]
        else:
            groups = read_captions(file.file, file.split)
        if len({group.file for group in groups}) < 2:
            raise ValidationFailed(
                f"the store {file.file} holds the captions of one picture; evidence needs at least two"
            )
        return cls(file.name, groups, retriever, by_text)

    def evidence(self, images: Vectors, examples: Sequence[Example]) -> list[tuple[Evidence, ...]]:
        """Return the nearest captions for each picture, its own never among them, nor any that is too far."""
        least = self.retriever.info.evidence_min_score
        out = []
        for image, example in zip(images, examples, strict=True):
            scores = self._vectors @ image  # (M,)
            scores[self._own(example)] = -np.inf
            first = np.argsort(-scores)[:_EVIDENCE]
            # Its own are among the first where the store is small.
            best = [j for j in first if np.isfinite(scores[j]) and (least is None or scores[j] >= least)]
            out.append(tuple(Evidence(str(j), self._texts[j], float(scores[j])) for j in best))
        return out

    @cached_property
    def _texts(self) -> list[str]:
        return [text for group in self.groups for text in group.captions]

    @cached_property
    def _vectors(self) -> Vectors:
        return embed_texts(self.retriever, self._texts)

    @cached_property
    def _group_of(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self.groups)), [len(group.captions) for group in self.groups])

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where a picture's name stands; of a store without names, where a text does."""
        places: dict[str, list[int]] = defaultdict(list)
        for j, text in enumerate(self._texts):
            places[_plain(text) if self.by_text else self.groups[self._group_of[j]].file].append(j)
        return places

    def _own(self, example: Example) -> list[int]:
        """Return the places of a picture's own captions.

        Without names: those in the same words, and all that the store tells of a picture of which it tells most of
        them. It may know one more caption of the picture than the data set does.
        """
        if not self.by_text:
            return self._places.get(example.file, [])
        words = {_plain(text) for text in example.captions}
        same = [j for text in words for j in self._places.get(text, [])]
        shared = Counter(int(self._group_of[j]) for j in same)
        mine = [group for group, count in shared.items() if 2 * count > len(words)]
        return [*same, *np.flatnonzero(np.isin(self._group_of, mine))]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")
