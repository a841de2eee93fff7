"""Teachers: trained models whose similarities the joint space learns beside which caption is whose.

Distillation (Hinton et al., arXiv:1503.02531) of the cosines within a batch, which asks for no equal dimensions (Yang
et al., CLIP-KD, CVPR 2024, arXiv:2307.12732). A teacher that sees pictures answers for the very view that the student
sees (Beyer et al., A good teacher is patient and consistent, CVPR 2022, arXiv:2106.05237). One that only reads takes a
picture's other captions for the picture, and says of texts how near they are to each other, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import Tensor

from revln.errors import ValidationFailed
from revln.models.base import Model, ModelInfo, Operation
from revln.training.data import Example, Pictures
from revln.training.evaluation.running import EMBEDS, run_model

__all__ = [
    "Answers",
    "Asked",
    "Reader",
    "Seer",
    "Teacher",
    "check_teacher",
    "fitted_scale",
    "teacher_of",
    "teaching_loss",
]

_MOST_SCALE = 500.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What teachers are told of a batch."""

    texts: Sequence[str]  # N, first those of the B pictures
    owner: Tensor  # (M,) the picture of each of the first M texts, on the training's device
    captions: Sequence[Sequence[str]]  # B, all captions of each picture


class Answers(NamedTuple):
    """One teacher's, as logits."""

    pictures: Tensor  # (B, N) of each picture and text
    texts: Tensor | None = None  # (N, N) of each text and text; None: it was not asked


class Teacher(Protocol):
    """What the joint stage asks of one."""

    def answers(self, views: Tensor, asked: Asked) -> Answers:
        """``views``: (B, 3, S, S) float32 in [-1, 1]. On the same device."""


class Seer:
    """A model that the service can embed pictures and texts with."""

    def __init__(self, model: Model, dev: Sequence[Example], pictures: Pictures) -> None:
        """``dev`` sets the scale."""
        self._model, self._read = model, _read_once(model)
        images = run_model(model, Operation.EMBED_IMAGE, [example.file for example in dev], pictures)
        self._scale = fitted_scale(_stack(images), self._read([example.captions[0] for example in dev]))

    def answers(self, views: Tensor, asked: Asked) -> Answers:
        bytes_ = ((views + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        found = run_model(self._model, Operation.EMBED_IMAGE, [Image.fromarray(row) for row in bytes_], quiet=True)
        return Answers((self._scale * _stack(found) @ self._read(asked.texts).T).to(views.device))


class Reader:
    """A model that the service can embed texts with: a sentence encoder."""

    def __init__(self, model: Model, dev: Sequence[Example]) -> None:
        """``dev`` sets the scales.

        Raises:
            ValidationFailed: no picture of it has two captions.
        """
        self._read = _read_once(model)
        told = [example.captions for example in dev if len(example.captions) > 1]
        if not told:
            raise ValidationFailed(
                f"no picture of the dev split has two captions, which {model.info.name}, a --teacher that embeds texts "
                "only, needs; give it a split with more, or name a teacher that embeds pictures too"
            )
        first, second = (self._read([captions[i] for captions in told]) for i in range(2))
        self._scale = fitted_scale(self._told([captions[1:] for captions in told]), first)
        self._text_scale = fitted_scale(second, first)

    def answers(self, views: Tensor, asked: Asked) -> Answers:
        texts, owner = self._read(asked.texts), asked.owner.cpu()  # (N, D), (M,)
        told = self._told(asked.captions)  # (B, D)
        cosine = F.normalize(told, dim=1) @ texts.T  # (B, N)
        # A caption is compared with the picture's others: with itself among them it would say which it is, not how well
        # it fits. A picture's only caption has none, and fits.
        mine = torch.arange(len(owner))
        alone = torch.tensor([len(captions) == 1 for captions in asked.captions])[owner]  # (M,)
        others = torch.where(alone[:, None], told[owner], told[owner] - texts[mine])
        cosine[owner, mine] = (F.normalize(others, dim=1) * texts[mine]).sum(dim=1)
        device = views.device
        return Answers((self._scale * cosine).to(device), (self._text_scale * texts @ texts.T).to(device))

    def _told(self, captions: Sequence[Sequence[str]]) -> Tensor:
        """The sum of the captions' vectors of each: (B, D)."""
        rows = self._read([text for group in captions for text in group])
        return torch.stack([part.sum(dim=0) for part in torch.split(rows, [len(group) for group in captions])])


def teacher_of(model: Model, dev: Sequence[Example], pictures: Pictures) -> Teacher:
    """Any model that passes `check_teacher`; ``dev`` sets how sure it may be. Raises as `Reader` does."""
    return Seer(model, dev, pictures) if set(model.info.operations) >= EMBEDS else Reader(model, dev)


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


def teaching_loss(
    images: Tensor, texts: Tensor, scale: Tensor, text_scale: Tensor, teachers: Sequence[Answers]
) -> Tensor:
    """(B, D) and (N, D) of the student → the mean divergence of its answers from the teachers' mean ones.

    For each picture the answer is a distribution over the N texts, for each text one over the B pictures; and one over
    the other texts, where a teacher says it.
    """
    scaled = scale * images.float() @ texts.float().T  # (B, N)
    wanted = [one.pictures for one in teachers]
    terms = [_divergence(scaled, wanted), _divergence(scaled.T, [one.T for one in wanted])]
    near = [one.texts for one in teachers if one.texts is not None]
    if near:
        scaled = text_scale * texts.float() @ texts.float().T  # (N, N)
        terms.append(_divergence(_others(scaled), [_others(one) for one in near]))
    return torch.stack(terms).mean()


def _divergence(scaled: Tensor, wanted: Sequence[Tensor]) -> Tensor:
    """Of the rows: (Q, A), and teachers' such → the mean over Q."""
    mean = torch.stack([one.float().softmax(dim=1) for one in wanted]).mean(dim=0)
    return F.kl_div(scaled.log_softmax(dim=1), mean, reduction="batchmean")


def _others(square: Tensor) -> Tensor:
    """(N, N) without its diagonal: (N, N - 1). A text is nearest to itself, which teaches nothing."""
    N = len(square)
    return square.flatten()[1:].view(N - 1, N + 1)[:, :-1].reshape(N, N - 1)


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
