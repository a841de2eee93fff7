"""Teachers that see: trained models whose similarities the joint stage learns beside which caption is whose.

Distillation (Hinton et al., arXiv:1503.02531) of the cosines within a batch, which asks for no equal dimensions (Yang
et al., CLIP-KD, CVPR 2024, arXiv:2307.12732). A teacher that sees pictures answers for the very view that the student
sees (Beyer et al., A good teacher is patient and consistent, CVPR 2022, arXiv:2106.05237).
Those that only read teach by their space: `revln.training.image`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import Tensor

from revln.errors import ValidationFailed
from revln.models.base import Model, ModelInfo, Operation
from revln.training.corpus import Photo
from revln.training.data import Example
from revln.training.evaluation.running import PicturesByName, run_model

__all__ = [
    "Seer",
    "Teacher",
    "check_teacher",
    "fitted_scale",
    "teaching_loss",
]

_MOST_SCALE = 500.0


class Teacher(Protocol):
    """What the joint stage asks of one."""

    def answers(self, views: Tensor, texts: Sequence[str]) -> Tensor:
        """``views``: (B, 3, S, S) float32 in [-1, 1] → (B, N) logits of each picture and text, on the same device."""


class Seer:
    """A model that the service can embed pictures and texts with."""

    def __init__(self, model: Model, dev: Sequence[Example | Photo], pictures: PicturesByName) -> None:
        """``dev`` sets the scale."""
        self._model, self._read = model, _read_once(model)
        images = run_model(model, Operation.EMBED_IMAGE, [example.file for example in dev], pictures)
        self._scale = fitted_scale(_stack(images), self._read([example.captions[0] for example in dev]))

    def answers(self, views: Tensor, texts: Sequence[str]) -> Tensor:
        bytes_ = ((views + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        found = run_model(self._model, Operation.EMBED_IMAGE, [Image.fromarray(row) for row in bytes_], quiet=True)
        return (self._scale * _stack(found) @ self._read(texts).T).to(views.device)


def check_teacher(info: ModelInfo) -> None:
    """Raises ValidationFailed if it does not embed texts."""
    if Operation.EMBED_TEXT not in info.operations:
        raise ValidationFailed(f"{info.name} does not embed texts, so it cannot be a --teacher")


def fitted_scale(images: Tensor, texts: Tensor) -> float:
    """(N, D) pictures, (N, D) a caption of each that the teacher has not seen → the scale of its honest doubt.

    That which makes each caption's own picture likeliest (temperature scaling: Guo et al., ICML 2017).
    """
    cosine, mine = F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T, torch.arange(len(images))

    def loss(log_scale: float) -> float:
        return float(F.cross_entropy(math.exp(log_scale) * cosine, mine))

    return math.exp(minimize_scalar(loss, bounds=(0.0, math.log(_MOST_SCALE)), method="bounded").x)


def teaching_loss(images: Tensor, texts: Tensor, scale: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """(B, D) and (N, D) of the student, (B, N) logits of each teacher → the mean divergence from the teachers' mean.

    For each picture the answer is a distribution over the N texts, for each text one over the B pictures.
    """
    scaled = scale * images.float() @ texts.float().T  # (B, N)
    return (_divergence(scaled, teachers) + _divergence(scaled.T, [one.T for one in teachers])) / 2


def _divergence(scaled: Tensor, wanted: Sequence[Tensor]) -> Tensor:
    """Of the rows: (Q, A), and teachers' such → the mean over Q."""
    mean = torch.stack([one.float().softmax(dim=1) for one in wanted]).mean(dim=0)
    return F.kl_div(scaled.log_softmax(dim=1), mean, reduction="batchmean")


def _read_once(model: Model) -> Callable[[Sequence[str]], Tensor]:
    """N captions → (N, D) on the CPU, unit norm; none is embedded twice."""
    known: dict[str, npt.NDArray[np.float32]] = {}

    def read(captions: Sequence[str]) -> Tensor:
        # By length, which leaves less to pad.
        new = sorted({text for text in captions if text not in known}, key=lambda text: (len(text), text))
        known.update(zip(new, run_model(model, Operation.EMBED_TEXT, new, quiet=True), strict=True))
        return _stack([known[text] for text in captions])

    return read


def _stack(vectors: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(vectors))
