"""The image half of the revln family: a MobileNetV2 trunk, and a learned pooling into the joint space.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (arXiv:1801.04381), in torchvision's
build. The pooling weighs the places of the feature map by attention, one set of weights a head, and adds their mean:
a plain mean alone lets the background outvote a small subject.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

__all__ = ["CHANNELS", "ImageEncoder", "load_backbone", "pixels", "to_unit"]

# Channels of MobileNetV2's last feature map at width 1.0.
CHANNELS = 1280


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


class _Stride2Conv(nn.Conv2d):
    """Pads below and to the right, as the backbone saw it in training (its inputs have even sides).

    With torchvision's symmetric padding every stride-2 layer shifts the grid by a pixel, and ImageNet accuracy falls.
    """

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias))


def _trunk() -> nn.Sequential:
    """torchvision's MobileNetV2 features, 19 blocks, with the padding above; the weights keep torchvision's names."""
    trunk = cast(nn.Sequential, mobilenet_v2(weights=None).features)
    for block in [module for module in trunk.modules() if isinstance(module, nn.Sequential)]:
        for i, conv in enumerate(block):
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                block[i] = _Stride2Conv(
                    conv.in_channels, conv.out_channels, 3, stride=2, groups=conv.groups, bias=False
                )
    return trunk


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
    """(B, 3, S, S) in [-1, 1] → places (B, P, 1280) and the unit vector (B, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.pool = _Pool(CHANNELS, dim, heads)
        self.dropout = nn.Dropout(0.1)

    def train(self, mode: bool = True) -> ImageEncoder:
        """The trunk stays in eval: its norms are folded into the convolutions, and a batch's own would undo them."""
        super().train(mode)
        self.trunk.eval()
        return self

    def places(self, x: Tensor, start: int = 0) -> Tensor:
        """Run the trunk from block ``start`` on (training caches what is frozen before it): → (B, P, 1280)."""
        x = self.trunk[start:](x)  # (B, 1280, h, w)
        return x.flatten(2).transpose(1, 2)  # (B, P, 1280)

    def embed(self, places: Tensor) -> Tensor:
        """(B, P, 1280) → (B, D), unit L2 norm."""
        return F.normalize(self.pool(self.dropout(places)), dim=-1)


def load_backbone(encoder: ImageEncoder, state: dict[str, Tensor]) -> None:
    """Put a torchvision MobileNetV2 state dict into the trunk; the classifier is dropped."""
    prefix = "features."
    trunk = {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
    missing, unexpected = encoder.trunk.load_state_dict(trunk, strict=False)
    lacking = [key for key in missing if not key.endswith("num_batches_tracked")]
    if lacking or unexpected:
        raise ValueError(f"not a MobileNetV2 state dict: {len(lacking)} keys missing, {len(unexpected)} unknown")
