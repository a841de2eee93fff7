"""How good the joint space is on the dev split: recall of captions, and names of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from revln.training.contrast import dev_recall
from revln.training.corpus import Corpus
from revln.training.labels import NAMED

__all__ = ["DevSpace", "flat"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DevSpace:
    """What is measured. Without captions and labels there is nothing, and an epoch is as good as the next."""

    corpus: Corpus

    @property
    def best_by(self) -> str | None:
        """The figure that chooses the epoch."""
        return "dev" if self.corpus.dev or self.corpus.dev_labelled else None

    def figures(
        self, images: Callable[[], Vectors], labelled: Callable[[], Vectors], texts: Callable[[Sequence[str]], Vectors]
    ) -> dict[str, float]:
        """``images``, ``labelled``: vectors of dev's pictures, asked for if there are any; ``texts`` embeds sentences.

        Returns:
            recalls and their mean, ``names`` (mean top-1 of the sources, percent), and ``dev``, the mean of these two.
        """
        figures: dict[str, float] = {}
        if self.corpus.dev:
            told, owner = flat([photo.captions for photo in self.corpus.dev])
            figures |= dev_recall(images(), texts(told), owner)
        if self.corpus.dev_labelled:
            figures["names"] = 100 * self._top1(labelled(), texts)
        means = [figures[name] for name in ("recall", "names") if name in figures]
        return {**figures, "dev": float(np.mean(means))} if means else figures

    def _top1(self, images: Vectors, texts: Callable[[Sequence[str]], Vectors]) -> float:
        photos, shares = self.corpus.dev_labelled, []
        for source, names in self.corpus.names.items():
            rows = [i for i, photo in enumerate(photos) if photo.source == source]
            if rows and len(names) > 1:
                best = (images[rows] @ texts([NAMED[0].format(name) for name in names]).T).argmax(axis=1)
                shares.append(np.mean([names[j] in photos[i].labels for i, j in zip(rows, best, strict=True)]))
        return float(np.mean(shares)) if shares else 0.0


def flat(groups: Sequence[Sequence[str]]) -> tuple[list[str], list[int]]:
    """Texts in one list, and the number of each one's group."""
    return [text for group in groups for text in group], [i for i, group in enumerate(groups) for _ in group]
