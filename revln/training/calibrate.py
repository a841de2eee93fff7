"""What cosines mean in a trained space, measured on the dev split: how near a match is, how far evidence may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["evidence_threshold", "match_thresholds"]

Vectors = npt.NDArray[np.float32]
# One unrelated item in a hundred passes for a match.
_FALSE_MATCHES = 0.01
# One ordinary picture in a hundred is captioned without evidence.
_FAR_PICTURES = 0.01


def match_thresholds(images: Vectors, texts: Vectors, owner: Sequence[int]) -> dict[str, float]:
    """(N, D) pictures, (M, D) captions of theirs → least cosine of a match, for a query by text and by image.

    The cosine that 99 of 100 pairs of a picture and another's caption, or of two pictures, stay below.
    """
    others = np.asarray(owner)[:, None] != np.arange(len(images))[None, :]  # (M, N)
    by_text = np.quantile((texts @ images.T)[others], 1 - _FALSE_MATCHES)
    by_image = np.quantile((images @ images.T)[~np.eye(len(images), dtype=bool)], 1 - _FALSE_MATCHES)
    return {"text": round(float(by_text), 3), "image": round(float(by_image), 3)}


def evidence_threshold(images: Vectors, texts: Vectors) -> float:
    """(N, D) unseen pictures, (M, D) captions to retrieve from → least cosine of a caption that may be evidence.

    The nearest caption of 99 of 100 such pictures is at least as near.
    """
    nearest = np.concatenate([(images[i : i + 256] @ texts.T).max(axis=1) for i in range(0, len(images), 256)])
    return round(float(np.quantile(nearest, _FAR_PICTURES)), 3)
