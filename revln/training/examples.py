"""What the decoder is shown and is to tell: sentences alone, captioned pictures, labelled ones.

A sentence stands for its picture: see `revln.training.captions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

from revln.models.revln.tokenizer import Tokenizer
from revln.training.evidence import Naming, Prompter, Store, draw_evidence
from revln.training.stage import rng_of, rows_of, steps_of
from revln.training.views import Views

__all__ = ["DecoderData", "OfCaptioned", "OfLabelled", "OfTexts", "Planned", "Row", "noisy", "target"]

Ids = list[int]
Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
_TARGET_TOKENS = 40
_VIEW_NOISE = 0.35  # a view's vector is not that of the whole picture
_LABEL_SENTENCES = ("a {}", "a close up of a {}", "a photo of a {}", "there is a {} in the picture")
_PLAN = 8  # batches that are planned together, so that rows of like length share one
# More passes of one kind of picture than lie in an epoch of another.
_PASSES = 1000


@dataclass(frozen=True, slots=True)
class DecoderData:
    """What the decoder learns from. Sentences are numbers in ``store``; pictures are numbered as ``views`` does."""

    store: Store
    groups: Sequence[Sequence[int]]  # sentences by their picture
    group_weights: Sequence[float]
    captioned: Sequence[Sequence[int]]  # of the first pictures
    labelled: Sequence[Sequence[str]]  # names of the pictures behind them
    weights: Sequence[float]  # of the pictures
    pictures: Vectors  # (N, D) of the uncut pictures
    noise: float  # of a sentence's vector
    centre: Tensor  # (D,) mean of such vectors
    views: Views


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to tell. Its length is what a batch pads."""

    prompt: Ids
    target: Ids
    picture: int = -1
    vector: Vectors | None = None  # of a sentence in place of a picture

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


class Planned:
    """Rows in random order, those of like length together: padding was half of every batch without that."""

    def __init__(
        self,
        key: tuple[int, ...],
        weights: Sequence[float],
        batch: int,
        rows: Callable[[np.random.Generator, Rows], list[Row]],
    ) -> None:
        self._key, self._weights, self._batch, self._rows = key, tuple(weights), batch, rows
        self._steps = steps_of(weights, batch)
        self._part = lru_cache(maxsize=2)(self._plan)

    def __call__(self, epoch: int, step: int) -> list[Row]:
        """``step`` may go beyond one pass."""
        epoch, step = epoch * _PASSES + step // self._steps, step % self._steps
        part = self._part(epoch, step // _PLAN)
        return part[step % _PLAN]

    def _plan(self, epoch: int, part: int) -> list[list[Row]]:
        rng, batch = rng_of(*self._key, epoch, part), self._batch
        steps = range(part * _PLAN, min((part + 1) * _PLAN, self._steps))
        chosen = np.concatenate([rows_of((*self._key, epoch), self._weights, batch, step) for step in steps])
        rows = sorted(self._rows(rng, chosen), key=len)
        starts = range(0, len(rows), batch)[: len(steps)]
        return [rows[first : first + batch] for first in rng.permutation(list(starts))]


class OfTexts:
    """One of a picture's sentences, from the noisy mean of up to three of them."""

    def __init__(self, data: DecoderData, prompter: Prompter) -> None:
        self._data, self._prompter = data, prompter

    def __call__(self, rng: np.random.Generator, chosen: Rows) -> list[Row]:
        data, store = self._data, self._data.store
        groups = [rng.permutation(data.groups[i]).tolist() for i in chosen]
        means = np.stack([self._seen(rng, group) for group in groups])
        queries = noisy(rng, means, data.noise * rng.uniform(0.6, 1.15))
        near = store.nearest(rng, queries, [set(group) for group in groups])
        return [
            Row(
                _prompt(self._prompter, rng, store, query, found, group[1:], group[0]),
                target(self._prompter.tokenizer, store.texts[group[0]]),
                vector=query,
            )
            for query, found, group in zip(queries, near, groups, strict=True)
        ]

    def _seen(self, rng: np.random.Generator, group: Ids) -> Vectors:
        """In half of the cases without the sentence that is told."""
        of = group if len(group) == 1 or rng.random() < 0.5 else group[1:]
        mean: Vectors = self._data.store.vectors[of[: int(rng.integers(1, 4))]].mean(axis=0)
        return mean


class OfCaptioned:
    """A caption of a picture."""

    def __init__(self, data: DecoderData, prompter: Prompter) -> None:
        self._data, self._prompter = data, prompter

    def __call__(self, rng: np.random.Generator, chosen: Rows) -> list[Row]:
        data, store = self._data, self._data.store
        groups = [rng.permutation(data.captioned[i]).tolist() for i in chosen]
        queries = noisy(rng, data.pictures[chosen], _VIEW_NOISE)
        near = store.nearest(rng, queries, [set(group) for group in groups])
        return [
            Row(
                _prompt(self._prompter, rng, store, query, found, group[1:], group[0]),
                target(self._prompter.tokenizer, store.texts[group[0]]),
                int(i),
            )
            for i, query, found, group in zip(chosen, queries, near, groups, strict=True)
        ]


class OfLabelled:
    """A sentence that names a label of the picture and is near to it, or else one made of the label."""

    def __init__(self, data: DecoderData, prompter: Prompter) -> None:
        self._data, self._prompter = data, prompter
        self._naming = Naming(data.store)

    def __call__(self, rng: np.random.Generator, chosen: Rows) -> list[Row]:
        data, store = self._data, self._data.store
        queries = data.pictures[chosen + len(data.captioned)]
        out = []
        for i, query, near in zip(chosen, queries, store.nearest(rng, queries, [set()] * len(chosen)), strict=True):
            label = data.labelled[i][int(rng.integers(len(data.labelled[i])))]
            found = self._naming.fitting(rng, label, query)
            others = [j for j in near if j != found]
            text = str(rng.choice(_LABEL_SENTENCES)).format(label) if found is None else store.texts[found]
            prompt = _prompt(self._prompter, rng, store, query, others, others[:2])
            out.append(Row(prompt, target(self._prompter.tokenizer, text), int(i) + len(data.captioned)))
        return out


def _prompt(
    prompter: Prompter,
    rng: np.random.Generator,
    store: Store,
    query: Vectors,
    near: Ids,
    own: Ids,
    told: int | None = None,
) -> Ids:
    return prompter(query, store, draw_evidence(rng, store, near, own, prompter.most, told))


def noisy(rng: np.random.Generator, vectors: Vectors, noise: float) -> Vectors:
    """(B, D) unit vectors with Gaussian noise of that length added, unit again: float32."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    moved = unit + noise / math.sqrt(vectors.shape[1]) * rng.standard_normal(vectors.shape)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), dtype=np.float32)


def target(tokenizer: Tokenizer, caption: str) -> Ids:
    """Without its full stop, which half of the captions lack: the end token says the same."""
    return tokenizer.encode(caption.strip().rstrip(". "))[:_TARGET_TOKENS]
