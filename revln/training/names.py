"""Names of labelled pictures, told as sentences: which are a picture's own, and which are too near to be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from revln.training.corpus import Corpus
from revln.training.labels import NAMED
from revln.training.sentences import Sentences

__all__ = ["Names", "class_loss", "names_loss", "template"]

# Names whose sentences are nearer than this, as the teacher reads them, are no wrong answers to each other.
_SYNONYMS = 0.7


@dataclass(frozen=True, slots=True)
class Names:
    """K names of the labelled pictures.

    Attributes:
        told: (K, templates) the sentences of each, by their numbers.
        own: (L, K) bool, the names of each labelled picture.
        choices: (L, K) bool, the names of its source.
        near: (K, K) bool, names that mean nearly the same; each is near to itself.
    """

    told: npt.NDArray[np.int64]
    own: Tensor
    choices: Tensor
    near: Tensor

    @classmethod
    def of(cls, corpus: Corpus, sentences: Sentences) -> Names:
        names = sorted({name for photo in corpus.labelled for name in photo.labels})
        number = {name: k for k, name in enumerate(names)}
        own, choices = (torch.zeros(len(corpus.labelled), len(names), dtype=torch.bool) for _ in range(2))
        of_source = {source: [number[name] for name in told if name in number] for source, told in corpus.names.items()}
        for i, photo in enumerate(corpus.labelled):
            own[i, [number[name] for name in photo.labels]] = True
            choices[i, of_source[photo.source]] = True
        told = np.array([sentences.numbers([one.format(name) for one in NAMED]) for name in names], dtype=np.int64)
        told = told.reshape(len(names), len(NAMED))
        vectors = F.normalize(sentences.rows(told[:, 0]), dim=1)
        return cls(told, own, choices, vectors @ vectors.T > _SYNONYMS)


def template(rng: np.random.Generator) -> int:
    """Choose in which of the sentences names are told: in half of the cases in the usual one."""
    return int(rng.integers(len(NAMED))) if rng.random() < 0.5 else 0


def names_loss(logits: Tensor, own: Tensor, left_out: Tensor) -> Tensor:
    """(B, K) logits, bool → scalar: a picture's own names, all alike, against those that are not left out."""
    wanted = own.float() / own.sum(dim=1, keepdim=True)
    chances = logits.masked_fill(left_out & ~own, -1e4).log_softmax(dim=1)
    return -(wanted * chances).sum(dim=1).mean()


def class_loss(logits: Tensor, chances: Tensor) -> Tensor:
    """(B, K) each: the divergence from what the backbone's own classifier says."""
    return F.kl_div(logits.log_softmax(dim=1), chances, reduction="batchmean")
