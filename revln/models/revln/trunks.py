"""The CNN trunks that a revln model may have: one builder of inverted residuals, and how published weights are read.

MobileNetV2: Sandler et al., CVPR 2018 (arXiv:1801.04381). EfficientNet-Lite: Tan and Le, EfficientNet, ICML 2019
(arXiv:1905.11946), without squeeze-and-excitation and with ReLU6, as Google published it for mobile processors.
Both are stacks of the same block; only the table below differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CHANNELS", "TRUNKS", "build_trunk", "fold_backbone"]

# Channels of the last feature map, of every trunk here.
CHANNELS = 1280
_STEM = 32


@dataclass(frozen=True, slots=True)
class _Stage:
    """``repeats`` blocks of which the first has the stride."""

    expand: int
    kernel: int
    stride: int
    channels: int
    repeats: int


@dataclass(frozen=True, slots=True)
class _Trunk:
    stages: tuple[_Stage, ...]
    # (name of a convolution in here) → (its name, and its norm's, in the published state dict)
    names: Callable[[str], tuple[str, str]]
    epsilon: float  # of the norms, which the published state dict does not say


def _mobilenet_names(name: str) -> tuple[str, str]:
    """torchvision's: the norm is the next of its block."""
    block, _, number = f"features.{name}".rpartition(".")
    return f"features.{name}", f"{block}.{int(number) + 1}"


def _lite_names(name: str) -> tuple[str, str]:
    """Those of efficientnet_lite_pytorch."""
    block, _, rest = name.partition(".")
    if not rest.startswith("conv."):
        return ("_conv_stem", "_bn0") if block == "0" else ("_conv_head", "_bn1")
    # Block 1 does not expand, so its depthwise convolution stands first.
    kind = (
        ("_depthwise_conv", "_project_conv") if block == "1" else ("_expand_conv", "_depthwise_conv", "_project_conv")
    )
    place = int(rest.split(".")[1])
    norms = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    prefix = f"_blocks.{int(block) - 1}."
    return prefix + kind[place], prefix + norms[kind[place]]


def _lite(width: float, depth: float) -> _Trunk:
    """EfficientNet-Lite of a width and a depth; its first and last stage keep their depth."""
    base = (
        _Stage(1, 3, 1, 16, 1),
        _Stage(6, 3, 2, 24, 2),
        _Stage(6, 5, 2, 40, 2),
        _Stage(6, 3, 2, 80, 3),
        _Stage(6, 5, 1, 112, 3),
        _Stage(6, 5, 2, 192, 4),
        _Stage(6, 3, 1, 320, 1),
    )
    stages = [
        replace(stage, channels=_of_eights(stage.channels * width), repeats=math.ceil(stage.repeats * deeper))
        for stage, deeper in zip(base, (1, *[depth] * 5, 1), strict=True)
    ]
    return _Trunk(tuple(stages), _lite_names, 1e-3)


def _of_eights(channels: float) -> int:
    """The nearest multiple of eight, never below nine tenths."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


TRUNKS: Mapping[str, _Trunk] = {
    "mobilenet_v2": _Trunk(
        (
            _Stage(1, 3, 1, 16, 1),
            _Stage(6, 3, 2, 24, 2),
            _Stage(6, 3, 2, 32, 3),
            _Stage(6, 3, 2, 64, 4),
            _Stage(6, 3, 1, 96, 3),
            _Stage(6, 3, 2, 160, 3),
            _Stage(6, 3, 1, 320, 1),
        ),
        _mobilenet_names,
        1e-5,
    ),
    "efficientnet_lite0": _lite(1.0, 1.0),
    "efficientnet_lite1": _lite(1.0, 1.1),
    "efficientnet_lite2": _lite(1.1, 1.2),
}


class _HalvingConv(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's padding: what is odd of it goes below and to the right.

    The published weights were trained so. With torchvision's symmetric padding every such layer shifts the grid by a
    pixel, and ImageNet accuracy falls.
    """

    def forward(self, x: Tensor) -> Tensor:
        before, after = zip(*(_same(side, self.kernel_size[0]) for side in x.shape[-2:]), strict=True)
        padded = F.pad(x, (before[1], after[1], before[0], after[0]))
        return cast(Tensor, self._conv_forward(padded, self.weight, self.bias))


def _same(side: int, kernel: int) -> tuple[int, int]:
    """Padding before and after a side that is to be halved, rounded up."""
    total = max(0, (math.ceil(side / 2) - 1) * 2 + kernel - side)
    return total // 2, total - total // 2


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    make, padding = (_HalvingConv, 0) if stride == 2 else (nn.Conv2d, kernel // 2)
    conv = make(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups)
    # By what a filter reads: fan_out counts a depthwise convolution's groups in, and without norms its tiny weights
    # would leave nothing of the picture.
    nn.init.kaiming_normal_(conv.weight, mode="fan_in")
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


def _active(conv: nn.Conv2d) -> nn.Sequential:
    """The place between is the folded norm's, so that weights keep torchvision's names."""
    return nn.Sequential(conv, nn.Identity(), nn.ReLU6(inplace=True))


class _Block(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expand
        layers: list[nn.Module] = [] if stage.expand == 1 else [_active(_conv(inputs, inner, 1))]
        layers += [_active(_conv(inner, inner, stage.kernel, stride, groups=inner)), _conv(inner, stage.channels, 1)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


def build_trunk(name: str) -> nn.Sequential:
    """Build a trunk of random weights: (B, 3, S, S) in [-1, 1] → (B, 1280, ⌈S/32⌉, ⌈S/32⌉).

    Without batch norms: each is folded into the bias and the weights of its convolution, which makes a pass on a CPU
    take half the time, and leaves nothing that a training batch's own statistics could undo.
    """
    blocks: list[nn.Module] = [_active(_conv(3, _STEM, 3, 2))]
    channels = _STEM
    for stage in TRUNKS[name].stages:
        for n in range(stage.repeats):
            blocks.append(_Block(channels, stage, stage.stride if n == 0 else 1))
            channels = stage.channels
    return nn.Sequential(*blocks, _active(_conv(channels, CHANNELS, 1)))


def fold_backbone(name: str, trunk: nn.Sequential, given: Mapping[str, Tensor]) -> None:
    """Put a published ImageNet state dict into a trunk, its norms folded; the classifier is dropped.

    Raises:
        ValueError: it is not of this trunk.
    """
    published, wanted = TRUNKS[name], trunk.state_dict()
    folded: dict[str, Tensor] = {}
    for key in (key.removesuffix(".weight") for key in wanted if key.endswith(".weight")):
        conv, norm = published.names(key)
        try:
            scale = given[f"{norm}.weight"].float() / (given[f"{norm}.running_var"].float() + published.epsilon).sqrt()
            folded[f"{key}.weight"] = given[f"{conv}.weight"].float() * scale[:, None, None, None]
            folded[f"{key}.bias"] = given[f"{norm}.bias"].float() - given[f"{norm}.running_mean"].float() * scale
        except KeyError as err:
            raise ValueError(f"not a state dict of {name}: {err.args[0]} is missing") from err
        if folded[f"{key}.weight"].shape != wanted[f"{key}.weight"].shape:
            raise ValueError(
                f"not a state dict of {name}: {conv}.weight is {tuple(given[f'{conv}.weight'].shape)}, not "
                f"{tuple(wanted[f'{key}.weight'].shape)}"
            )
    trunk.load_state_dict(folded)
