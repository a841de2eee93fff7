"""The image half of the revln family: a CNN trunk, and a learned pooling into the joint space.

The trunks stand in `revln.models.revln.trunks`. The pooling weighs the places of the feature map by attention, one set
of weights a head, and adds their mean: a plain mean alone lets the background outvote a small subject.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from revln.models.revln.trunks import CHANNELS, build_trunk

__all__ = ["ImageEncoder", "pixels", "to_unit"]


def pixels(image: Image.Image, size: int) -> Tensor:
    """A picture of any size, squashed to a square: (3, size, size) uint8.

    Squashed and not cropped, because the training pictures are; bytes and not floats, because a batch of them is a
    quarter of the size on its way to the device. ``reducing_gap`` halves the cost on large photographs.
    """
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, size, size)


def to_unit(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 3, H, W) uint8 → the same in [-1, 1], which is what the backbone was trained on."""
    return images.to(dtype) / 127.5 - 1.0


class _Pool(nn.Module):
    """Feature map → one vector: attention over places by ``heads`` heads, beside the mean.

    (B, P, C) → (B, D)
    """

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        # The channels share a large mean, which would put all pictures in one corner of the space.
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.score = nn.Linear(channels, heads)
        self.value = nn.Linear(channels, dim)
        self.mean = nn.Linear(channels, dim)
        self.heads = heads

    def forward(self, places: Tensor) -> Tensor:
        B, P, _ = places.shape
        places = self.norm(places.flatten(0, 1)).view_as(places)  # (B, P, C)
        weights = self.score(places).softmax(dim=1)  # (B, P, heads)
        values = self.value(places).view(B, P, self.heads, -1)  # (B, P, heads, D / heads)
        attended = torch.einsum("bph,bphd->bhd", weights, values).reshape(B, -1)  # (B, D)
        return cast(Tensor, attended + self.mean(places.mean(dim=1)))


class ImageEncoder(nn.Module):
    """(B, 3, S, S) in [-1, 1] → places (B, P, 1280) and the unit vector (B, D), which is float32 in any precision."""

    def __init__(self, trunk: str, dim: int, heads: int) -> None:
        super().__init__()
        self.trunk = build_trunk(trunk)
        self.pool = _Pool(CHANNELS, dim, heads)
        self.dropout = nn.Dropout(0.1)

    def places(self, x: Tensor) -> Tensor:
        """The trunk's feature map, its cells in a row: → (B, P, 1280)."""
        x = self.trunk(x)  # (B, 1280, h, w)
        return x.flatten(2).transpose(1, 2)  # (B, P, 1280)

    def embed(self, places: Tensor) -> Tensor:
        """(B, P, 1280) → (B, D) float32, unit L2 norm: in half precision its third digit would be wrong."""
        return F.normalize(self.pool(self.dropout(places)).float(), dim=-1)

    def vectors(self, x: Tensor, mirror: bool) -> Tensor:
        """(B, 3, S, S) → (B, D) float32, unit L2 norm; with ``mirror`` of the picture's and its mirror image's sum.

        In two passes: one over both took a tenth longer (32 pictures on one core), and takes twice the memory.
        """
        vectors = self.embed(self.places(x))
        return F.normalize(vectors + self.embed(self.places(x.flip(-1))), dim=-1) if mirror else vectors
