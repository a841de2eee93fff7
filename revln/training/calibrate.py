"""What cosines and log-probabilities mean, measured on dev: a match, evidence, its levels, a caption's confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

__all__ = ["evidence_levels", "evidence_threshold", "fitted_confidence", "match_thresholds"]

Vectors = npt.NDArray[np.float32]
# One unrelated item in a hundred passes for a match.
_FALSE_MATCHES = 0.01
# One ordinary picture in a hundred is captioned without evidence.
_FAR_PICTURES = 0.01
# Of a picture's own captions so many are less near than a level: below the first are strangers' only.
_LEVELS = (0.02, 0.10, 0.25, 0.50, 0.75)
# A caption is right as far as its CIDEr comes up to this: people's own captions score about 1 against each other.
_RIGHT = 1.0
# Keeps the weights finite where a feature tells everything, or nothing.
_RIDGE = 1e-3


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


def evidence_levels(cosines: npt.NDArray[np.float32]) -> list[float]:
    """(M,) cosines of pictures and their own captions → `RevlnConfig.evidence_levels`, rising."""
    return [round(float(level), 3) for level in np.quantile(cosines, _LEVELS)]


def fitted_confidence(features: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> list[float]:
    """(N, F) features of captions and (N,) their CIDEr → the weights of a logistic regression, the bias first.

    Platt, 1999; a caption that is right in part counts as so much of a right one.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > 1e-6  # a feature that does not, of evidence where there is none say, gets no weight
    spread = np.where(varies, spread, 1.0)
    scaled = np.where(varies, (features - mean) / spread, 0.0)
    right = np.clip(scores / _RIGHT, 0.0, 1.0)

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = weights[0] + scaled @ weights[1:]
        error = 1 / (1 + np.exp(-logits)) - right
        slopes = np.concatenate([[error.mean()], scaled.T @ error / len(error)]) + 2 * _RIDGE * weights
        return float((np.logaddexp(0, logits) - right * logits).mean() + _RIDGE * weights @ weights), slopes

    found = minimize(loss, np.zeros(1 + features.shape[1]), jac=True, method="L-BFGS-B").x
    slopes = found[1:] / spread
    return [round(float(weight), 4) for weight in (found[0] - slopes @ mean, *slopes)]
