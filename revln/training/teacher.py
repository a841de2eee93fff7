"""Teachers: trained dual encoders whose similarities the joint space learns beside which caption is whose.

Distillation (Hinton et al., arXiv:1503.02531) of the cosines within a batch, which asks for no equal dimensions (Yang
et al., CLIP-KD, CVPR 2024, arXiv:2307.12732). A teacher answers for the very view that the student sees (Beyer et al.,
A good teacher is patient and consistent, CVPR 2022, arXiv:2106.05237).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import Tensor

from revln.errors import ValidationFailed
from revln.models.base import Model, Operation
from revln.training.data import Example, Pictures
from revln.training.evaluate import EMBEDS, run_model

__all__ = ["Answers", "ServedTeacher", "Teacher", "fitted_scale", "teaching_loss"]

_MOST_SCALE = 500.0


class Teacher(Protocol):
    """What the joint stage asks of one."""

    scale: float  # what its cosines are multiplied by before a softmax

    def images(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [-1, 1] → (B, D), unit norm, on the same device."""

    def texts(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """N captions → (N, D), unit norm."""


class Answers(NamedTuple):
    """One teacher's vectors for a batch."""

    images: Tensor  # (B, D)
    texts: Tensor  # (N, D)
    scale: float


class ServedTeacher:
    """Any model that the service can embed pictures and texts with; a caption is read once."""

    def __init__(self, model: Model, dev: Sequence[Example], pictures: Pictures) -> None:
        """``dev`` sets the scale.

        Raises:
            ValidationFailed: the model does not embed both.
        """
        if not set(model.info.operations) >= EMBEDS:
            raise ValidationFailed(f"{model.info.name} does not embed pictures and texts, so it cannot be a --teacher")
        self._model = model
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        images = run_model(model, Operation.EMBED_IMAGE, [example.file for example in dev], pictures)
        texts = run_model(model, Operation.EMBED_TEXT, [example.captions[0] for example in dev])
        self.scale = fitted_scale(_stack(images), _stack(texts))

    def images(self, views: Tensor) -> Tensor:
        bytes_ = ((views + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        found = run_model(self._model, Operation.EMBED_IMAGE, [Image.fromarray(row) for row in bytes_], quiet=True)
        return _stack(found).to(views.device)

    def texts(self, captions: Sequence[str], device: torch.device) -> Tensor:
        new = sorted({text for text in captions if text not in self._known})
        self._known |= zip(new, run_model(self._model, Operation.EMBED_TEXT, new, quiet=True), strict=True)
        return _stack([self._known[text] for text in captions]).to(device)


def fitted_scale(images: Tensor, texts: Tensor) -> float:
    """(N, D) pictures, (N, D) a caption of each that the teacher has not seen → the scale of its honest doubt.

    That which makes each caption's own picture likeliest (temperature scaling: Guo et al., ICML 2017).
    """
    cosine, mine = texts @ images.T, torch.arange(len(images))

    def loss(log_scale: float) -> float:
        return float(F.cross_entropy(math.exp(log_scale) * cosine, mine))

    return math.exp(minimize_scalar(loss, bounds=(0.0, math.log(_MOST_SCALE)), method="bounded").x)


def teaching_loss(images: Tensor, texts: Tensor, scale: Tensor, teachers: Sequence[Answers]) -> Tensor:
    """(B, D) and (N, D) of the student → the divergence of its answers from the teachers' mean ones, both ways.

    For each picture the answer is a distribution over the N texts, for each text one over the B pictures.
    """
    scaled = scale * images.float() @ texts.float().T  # (B, N)
    total = scaled.new_zeros(())
    wanted = torch.stack([t.scale * t.images.float() @ t.texts.float().T for t in teachers])  # (teachers, B, N)
    for over in (1, 0):
        mean = wanted.softmax(dim=1 + over).mean(dim=0)
        total = total + F.kl_div(scaled.log_softmax(dim=over), mean, reduction="sum") / scaled.shape[1 - over]
    return total / 2


def _stack(vectors: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(vectors))
