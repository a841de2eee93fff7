"""The CNN trunks: against torchvision's MobileNetV2, and a published EfficientNet-Lite run as its state dict says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from revln.models.revln.trunks import CHANNELS, TRUNKS, build_trunk, fold_backbone

State = dict[str, Tensor]


@pytest.mark.parametrize("name", TRUNKS)
def test_every_trunk_halves_five_times_and_rounds_up(name: str) -> None:
    trunk = build_trunk(name)
    with torch.inference_mode():
        for side, cells in ((64, 2), (65, 3)):
            assert trunk(torch.zeros(1, 3, side, side)).shape == (1, CHANNELS, cells, cells)


def test_random_weights_keep_pictures_apart() -> None:
    """Nothing vanishes for want of norms."""
    torch.manual_seed(0)
    with torch.inference_mode():
        out = build_trunk("efficientnet_lite0")(torch.randn(2, 3, 64, 64)).flatten(1)
    assert out.std() > 1e-3
    assert (out[0] - out[1]).abs().max() > 1e-3


def _varied(state: State) -> State:
    """Norms that do something."""
    torch.manual_seed(1)
    return {
        name: torch.rand_like(value) + 0.5 if name.endswith(("running_var", "running_mean", ".bias")) else value
        for name, value in state.items()
    }


def test_a_folded_mobilenet_is_torchvisions_with_the_padding_it_was_trained_with() -> None:
    reference = torchvision.models.mobilenet_v2(num_classes=5).eval()
    reference.load_state_dict(_varied(reference.state_dict()))
    trunk = build_trunk("mobilenet_v2")
    fold_backbone("mobilenet_v2", trunk, reference.state_dict())
    for module in reference.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, args: F.pad(args[0], (0, 1, 0, 1)))
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), reference.features(x), rtol=1e-3, atol=1e-4)


# EfficientNet-Lite0: (expansion, kernel, stride, channels, repeats) of its stages, from the reference implementation.
LITE0 = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
         (6, 3, 1, 320, 1)]  # fmt: skip


def _blocks() -> Iterator[tuple[str, int, int, int, int, int]]:
    """Name, kernel, stride, inner, inputs, outputs of each."""
    inputs, number = 32, 0
    for expansion, kernel, stride, outputs, repeats in LITE0:
        for n in range(repeats):
            yield f"_blocks.{number}.", kernel, stride if n == 0 else 1, inputs * expansion, inputs, outputs
            inputs, number = outputs, number + 1


def _published() -> State:
    torch.manual_seed(0)
    state: State = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        # So that the signal neither grows nor fades from block to block: ReLU follows two convolutions of three.
        state[f"{conv}.weight"] = torch.randn(shape) * (1.6 / (shape[1] * shape[2] * shape[3])) ** 0.5
        for name in ("weight", "bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(shape[0]) * 0.1 + (name == "weight")
        state[f"{norm}.running_var"] = torch.rand(shape[0]) + 0.5

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    for name, kernel, _, inner, inputs, outputs in _blocks():
        if inner != inputs:
            add(f"{name}_expand_conv", f"{name}_bn0", inner, inputs, 1, 1)
        add(f"{name}_depthwise_conv", f"{name}_bn1", inner, 1, kernel, kernel)
        add(f"{name}_project_conv", f"{name}_bn2", outputs, inner, 1, 1)
    add("_conv_head", "_bn1", CHANNELS, 320, 1, 1)
    state["_fc.weight"] = torch.zeros(1000, CHANNELS)
    return state


def _run(state: State, x: Tensor) -> Tensor:
    """The network as published: TensorFlow's padding, norms with an epsilon of 0.001, ReLU6."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1, active: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        total = max(weight.shape[-1] - stride, 0)  # of an even side
        x = F.conv2d(F.pad(x, (total // 2, total - total // 2) * 2), weight, stride=stride, groups=groups)
        mean, variance, scale, bias = (
            state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, variance, scale, bias, eps=1e-3)
        return F.relu6(x) if active else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    for name, _, stride, inner, inputs, outputs in _blocks():
        y = layer(x, f"{name}_expand_conv", f"{name}_bn0") if inner != inputs else x
        y = layer(y, f"{name}_depthwise_conv", f"{name}_bn1", stride, inner)
        y = layer(y, f"{name}_project_conv", f"{name}_bn2", active=False)
        x = x + y if stride == 1 and inputs == outputs else y
    return layer(x, "_conv_head", "_bn1")


def test_a_folded_efficientnet_lite_is_the_published_one() -> None:
    state, trunk = _published(), build_trunk("efficientnet_lite0")
    fold_backbone("efficientnet_lite0", trunk, state)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), _run(state, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("efficientnet_lite0", {"_blocks.3._bn1.bias": None}, "lite0: _blocks.3._bn1.bias is missing"),
        ("mobilenet_v2", {}, "mobilenet_v2: features.0.1.weight is missing"),
        ("efficientnet_lite0", {"_conv_head.weight": torch.zeros(CHANNELS, 4, 1, 1)}, "_conv_head.weight is .1280, 4"),
        ("efficientnet_lite2", {}, "not a state dict of efficientnet_lite2"),
    ],
)
def test_a_state_dict_of_something_else_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    state = {key: value for key, value in (_published() | change).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        fold_backbone(name, build_trunk(name), state)
