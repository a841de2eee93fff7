"""Evidence of every quality, each sentence with a level that says how near it is to the picture.

A decoder that was only ever shown evidence that adds nothing to the picture learns to look away; one whose evidence is
always right learns to copy. So in training a prompt holds nothing, what was retrieved, other captions of the same
picture (as a store that holds the picture would give), the very sentence that is to be told (so that what is near is
repeated), or a stranger's (as mislabelled data would).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from revln.models.revln.tokenizer import Tokenizer

__all__ = ["Naming", "Prompter", "Store", "draw_evidence", "nearest_captions"]

Vectors = npt.NDArray[np.float32]
Ids = list[int]
# A store of training is a random part of all sentences: a user's may be small, and a search through all takes seconds.
_STORE = 30_000
_NEAREST = 12
_EXACT = 0.18  # share of prompts that hold the sentence to be told, where it is in the store
# Shares of the others. Half of those with retrieved sentences hold the first four, as the served model's do.
_NONE, _RETRIEVED, _OWN, _STRANGER = 0.30, 0.32, 0.18, 0.10  # the rest: a stranger's among what was retrieved
# Sentences that name a label are looked through up to so many, and the nearest to the picture are told of it.
_MOST_NAMING, _LEAST_NAMING, _FITTING = 400, 3, 8


@dataclass(frozen=True)
class Store:
    """Sentences, and their vectors (M, D) by the trained text encoder."""

    texts: Sequence[str]
    vectors: Vectors

    @cached_property
    def number(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    def nearest(self, rng: np.random.Generator, queries: Vectors, own: Sequence[AbstractSet[int]]) -> list[Ids]:
        """Return for each of (B, D) up to 12 sentences of a random part of the store, best first, ``own`` left out."""
        part = np.arange(len(self.texts))
        if len(part) > _STORE:
            part = rng.choice(len(part), _STORE, replace=False)
        most = min(_NEAREST + max((len(one) for one in own), default=0), len(part))
        scores = queries @ self.vectors[part].T  # (B, part)
        first = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        order = np.take_along_axis(scores, first, axis=1).argsort(axis=1)[:, ::-1]
        found = part[np.take_along_axis(first, order, axis=1)]
        return [[j for j in row.tolist() if j not in mine][:_NEAREST] for row, mine in zip(found, own, strict=True)]


@dataclass(frozen=True, slots=True)
class Prompter:
    """Puts prompts together as the served model does (`revln.models.revln.captioning`)."""

    tokenizer: Tokenizer
    most: int  # sentences
    each: int  # tokens of each
    levels: Sequence[float]

    def __call__(self, query: Vectors, store: Store, evidence: Sequence[int]) -> Ids:
        """(D,) of the picture, and the numbers of sentences in the store."""
        cosines = {j: float(store.vectors[j] @ query) for j in evidence}
        best = sorted(cosines, key=lambda j: -cosines[j])[: self.most]
        return self.tokenizer.prompt([(bisect_right(self.levels, cosines[j]), store.texts[j]) for j in best], self.each)


def draw_evidence(
    rng: np.random.Generator,
    store: Store,
    near: Sequence[int],
    own: Sequence[int],
    most: int,
    told: int | None = None,
) -> Ids:
    """Draw the sentences of one prompt: of the retrieved ones, best first, the picture's other captions, strangers.

    ``told``: the sentence that the decoder is to tell.
    """
    if told is not None and rng.random() < _EXACT:
        return [told, *(near[: int(rng.integers(0, most))] if rng.random() < 0.7 else ())]
    chance = rng.random()
    if chance < _NONE:
        return []
    if chance < _NONE + _RETRIEVED:
        return list(near[:most]) if rng.random() < 0.6 else _some(rng, near[: 2 * most], most)
    if own and chance < _NONE + _RETRIEVED + _OWN:
        beside = near[: int(rng.integers(0, most))] if rng.random() < 0.6 else ()
        return [*_some(rng, own, 2), *beside]
    strangers = rng.integers(len(store.texts), size=int(rng.integers(1, 3))).tolist()
    if chance < 1 - _STRANGER:
        return [*strangers[:1], *near[: most - 1]]
    return list(strangers)


def _some(rng: np.random.Generator, of: Sequence[int], most: int) -> Ids:
    """Between one and ``most`` of them, in their order."""
    if not of:
        return []
    n = int(rng.integers(1, min(most, len(of)) + 1))
    return [of[i] for i in np.sort(rng.choice(len(of), n, replace=False))]


class Naming:
    """Sentences that name a label: what else could be said of a labelled picture."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._with: dict[str, set[int]] = {}
        for number, text in enumerate(store.texts):
            for word in re.findall(r"\w+", text.lower()):
                self._with.setdefault(word, set()).add(number)
        self._known: dict[str, Ids] = {}

    def fitting(self, rng: np.random.Generator, label: str, picture: Vectors) -> int | None:
        """Return one of the nearest to the picture (D,) of those that name the label; None where there are too few."""
        found = self._naming(label)
        if len(found) < _LEAST_NAMING:
            return None
        part = np.array(found if len(found) <= _MOST_NAMING else rng.choice(found, _MOST_NAMING, replace=False))
        nearest = part[np.argsort(-(self._store.vectors[part] @ picture))[:_FITTING]]
        return int(rng.choice(nearest))

    def _naming(self, label: str) -> Ids:
        """All words of the label, or else its last one, which says what it is: "golden retriever"."""
        if label not in self._known:
            words = re.findall(r"\w+", label.lower())
            each = [self._with.get(word, set()) | self._with.get(word + "s", set()) for word in words]
            found = set.intersection(*each) if each else set()
            self._known[label] = sorted(found or (each[-1] if each else ()))
        return self._known[label]


def nearest_captions(images: Vectors, texts: Vectors, k: int) -> list[npt.NDArray[np.int64]]:
    """(N, D) pictures, (M, D) captions → up to k caption numbers for each, best first."""
    out: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(images), 512):
        out += list((-(images[start : start + 512] @ texts.T)).argsort(axis=1, kind="stable")[:, :k])
    return out
