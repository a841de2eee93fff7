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
    """torchvision's MobileNetV2 features, 19 blocks, with the padding above; the weights keep torchvision's names.

    Without batch norms: each is folded into the bias and the weights of its convolution, which makes a pass on a CPU
    take half the time, and leaves nothing that a training batch's own statistics could undo.
    """
    trunk = cast(nn.Sequential, mobilenet_v2(weights=None, norm_layer=lambda _: nn.Identity()).features)
    for block in [module for module in trunk.modules() if isinstance(module, nn.Sequential)]:
        for i, conv in enumerate(block):
            if isinstance(conv, nn.Conv2d):
                halves = conv.stride == (2, 2)
                make, padding = (_Stride2Conv, 0) if halves else (nn.Conv2d, conv.padding)
                new = make(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,  # type: ignore[arg-type]
                    stride=conv.stride,  # type: ignore[arg-type]
                    padding=padding,  # type: ignore[arg-type]
                    groups=conv.groups,
                )
                # By what a filter reads: fan_out counts a depthwise convolution's groups in, and without norms its
                # tiny weights would leave nothing of the picture.
                nn.init.kaiming_normal_(new.weight, mode="fan_in")
                nn.init.zeros_(cast(Tensor, new.bias))
                block[i] = new
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
    """(B, 3, S, S) in [-1, 1] → places (B, P, 1280) and the unit vector (B, D), which is float32 in any precision."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.trunk = _trunk()
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


def load_backbone(encoder: ImageEncoder, state: dict[str, Tensor]) -> None:
    """Put a torchvision MobileNetV2 state dict into the trunk, its norms folded; the classifier is dropped.

    Raises:
        ValueError: it is no MobileNetV2 of width 1.0.
    """
    prefix = "features."
    given = {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
    wanted = encoder.trunk.state_dict()
    folded: dict[str, Tensor] = {}
    try:
        for name in (key.removesuffix(".weight") for key in wanted if key.endswith(".weight")):
            folded |= _fold(given, name)
    except KeyError as err:
        raise ValueError(f"not a MobileNetV2 state dict: {prefix}{err.args[0]} is missing") from err
    wrong = [key for key, value in folded.items() if value.shape != wanted[key].shape]
    if wrong:
        raise ValueError(f"not a MobileNetV2 of width 1.0: {prefix}{wrong[0]} is {tuple(folded[wrong[0]].shape)}")
    encoder.trunk.load_state_dict(folded)


# torchvision's default for BatchNorm2d.
_EPSILON = 1e-5


def _fold(given: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The convolution ``name`` with the norm that follows it, which is the next of its block."""
    block, _, number = name.rpartition(".")
    norm = f"{block}.{int(number) + 1}"
    scale = given[f"{norm}.weight"] / (given[f"{norm}.running_var"] + _EPSILON).sqrt()
    weight = given[f"{name}.weight"] * scale[:, None, None, None]
    return {f"{name}.weight": weight, f"{name}.bias": given[f"{norm}.bias"] - given[f"{norm}.running_mean"] * scale}
