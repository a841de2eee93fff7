"""The picture's side of the joint space, learned against a sentence encoder's fixed vectors through a small head.

So trunk and pooling learn where a space that knows all words puts a picture: its captions (InfoNCE, with what the
encoder thinks of other pictures' captions as soft targets: Hinton et al., arXiv:1503.02531), its names among those of
its source, and the names of the classes that the published backbone tells (cf. LiT, which has the
other side fixed: Zhai et al., CVPR 2022, arXiv:2111.07991).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revln.models.revln.image_cnn import ImageEncoder
from revln.training.contrast import Scale, contrastive_loss
from revln.training.names import Names, class_loss, names_loss, template
from revln.training.sentences import Sentences
from revln.training.stage import Stage, convolving, endless_rows, rng_of, steps_of
from revln.training.teacher import teaching_loss
from revln.training.views import Views

__all__ = ["Head", "SpaceData", "image_stage", "parts_of"]

_IMAGE = 6  # in the keys of random generators
_CAPTIONED = 0.56  # share of a batch, where there are labelled pictures, too
_HIDDEN = 1024
_EXTRA = 6  # times as many sentences of no picture as there are captioned pictures; they weigh half
_SURE = 20.0  # the scale of the encoder's cosines
# Of the parts of the loss.
_CONTRAST, _SOFT, _NAMES, _ALL_NAMES, _CLASSES = 0.7, 0.3, 0.6, 0.3, 0.3


class Head(nn.Module):
    """(N, T) vectors of a sentence encoder → (N, D) unit vectors of the joint space."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.straight = nn.Linear(inputs, dim)
        self.round = nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(_HIDDEN, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(cast(Tensor, self.straight(vectors) + self.round(vectors)), dim=-1)


@dataclass(frozen=True, slots=True)
class SpaceData:
    """Pictures by the numbers of ``views``, captioned ones first, and sentences by their numbers."""

    views: Views
    sentences: Sentences
    captioned: Sequence[Sequence[int]]
    weights: Sequence[float]
    names: Names
    free: npt.NDArray[np.int64]  # sentences that may be trained on
    classes: npt.NDArray[np.int64]  # (C, templates), those of the backbone's classes
    chances: npt.NDArray[np.float16] | None  # (N, C) what the backbone says of each picture


def parts_of(data: SpaceData, batch: int) -> tuple[int, int]:
    """Return how many captioned and how many labelled pictures a batch has."""
    n, labelled = len(data.captioned), len(data.names.own)
    if not labelled or not n:
        return (batch, 0) if n else (0, batch)
    some = round(_CAPTIONED * batch)
    return some, batch - some


@dataclass(frozen=True, slots=True)
class _Batch:
    drawn: Any
    captions: list[int]
    owner: Tensor  # the picture of each
    fits: Tensor  # (B, N) where a caption is one of the picture's
    extra: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]
    told: int  # in which sentence names are
    chances: Tensor | None


def image_stage(
    image: ImageEncoder,
    head: Head,
    data: SpaceData,
    freeze: int,
    epochs: int,
    batch: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
    best_by: str | None,
    device: torch.device,
) -> Stage:
    """A pass sees each captioned picture once, and as many labelled ones as fit beside them."""
    scales = nn.ModuleList(Scale() for _ in range(3)).to(device)
    n = len(data.captioned)
    captioned, labelled = parts_of(data, batch)
    steps = steps_of(data.weights[:n] if n else data.weights, captioned or labelled)

    def draw(epoch: int, step: int) -> _Batch:
        rng, at = rng_of(seed, _IMAGE, epoch, step), epoch * steps + step
        first = endless_rows((seed, _IMAGE, 0), data.weights[:n], captioned, at)
        named = endless_rows((seed, _IMAGE, 1), data.weights[n:], labelled, at)
        groups = [data.captioned[i] for i in first]
        captions = [j for group in groups for j in group]
        pictures = np.concatenate([first, named + n])
        return _Batch(
            drawn=data.views.draw(rng, pictures),
            captions=captions,
            owner=torch.tensor([k for k, group in enumerate(groups) for _ in group], dtype=torch.int64),
            fits=torch.tensor([[j in group for j in captions] for group in groups]).view(len(groups), len(captions)),
            extra=rng.choice(data.free, min(_EXTRA * captioned, len(data.free)), replace=False),
            labelled=named,
            told=template(rng),
            chances=None if data.chances is None else torch.from_numpy(data.chances[pictures].astype(np.float32)),
        )

    def read(numbers: npt.NDArray[np.int64] | Sequence[int]) -> Tensor:
        vectors: Tensor = head(data.sentences.rows(numbers).to(device))
        return vectors.float()

    def loss(item: _Batch) -> Tensor:
        with convolving(device):
            vectors = image.embed(data.views.places(item.drawn))
        n = len(vectors) - len(item.labelled)
        with torch.autocast(device.type, enabled=False):
            parts = [vectors.sum() * 0.0]
            if n:
                parts.append(_captions_loss(vectors[:n], item, data, read, scales[0]()))
            if len(item.labelled):
                logits = scales[1]() * vectors[n:] @ read(data.names.told[:, item.told]).T  # (L, K)
                parts.append(_names_loss(logits, item.labelled, data.names))
            if item.chances is not None:
                told = scales[2]() * vectors @ read(data.classes[:, item.told]).T
                parts.append(_CLASSES * class_loss(told, item.chances.to(device)))
            return torch.stack(parts).sum()

    groups = [
        {"params": [*image.pool.parameters(), *head.parameters(), *scales.parameters()], "lr": 1e-3},
        # The backbone knows a thousand classes that few pictures cannot teach it again: slowly.
        {"params": list(image.trunk[freeze:].parameters()), "lr": 2.5e-4},
    ]
    modules = {"image": image, "head": head, "scales": scales}
    groups = [group for group in groups if group["params"]]
    return Stage("image", epochs, steps, groups, modules, draw, loss, validate, best_by)


def _captions_loss(
    vectors: Tensor,
    item: _Batch,
    data: SpaceData,
    read: Callable[[npt.NDArray[np.int64] | Sequence[int]], Tensor],
    scale: Tensor,
) -> Tensor:
    owner, device = item.owner.to(vectors.device), vectors.device
    texts = read(item.captions)
    contrast = contrastive_loss(vectors, texts, owner, scale, 0.0, item.fits.to(device), read(item.extra))
    soft = _SURE * _others_cosine(F.normalize(data.sentences.rows(item.captions), dim=1), item.owner, len(vectors))
    return _CONTRAST * contrast + _SOFT * teaching_loss(vectors, texts, scale, [soft.to(device)])


def _names_loss(logits: Tensor, labelled: npt.NDArray[np.int64], names: Names) -> Tensor:
    """Among the names of its source; and among all, but for near synonyms of its own."""
    own, choices = (part[labelled].to(logits.device) for part in (names.own, names.choices))
    near = own.float() @ names.near.float().to(logits.device) > 0
    return _NAMES * (names_loss(logits, own, ~choices) + _ALL_NAMES * names_loss(logits, own, near))


def _others_cosine(texts: Tensor, owner: Tensor, pictures: int) -> Tensor:
    """(N, T) unit vectors of captions → (B, N) how near each is to a picture's other captions, which stand for it.

    With itself among them a caption would say which it is, not how well it fits. A picture's only caption fits.
    """
    told = torch.zeros(pictures, texts.shape[1]).index_add(0, owner, texts)  # (B, T)
    cosine = F.normalize(told, dim=1) @ texts.T  # (B, N)
    mine = torch.arange(len(owner))
    alone = torch.bincount(owner, minlength=pictures)[owner] == 1
    others = torch.where(alone[:, None], told[owner], told[owner] - texts)
    cosine[owner, mine] = (F.normalize(others, dim=1) * texts).sum(dim=1)
    return cosine
