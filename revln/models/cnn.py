"""torchvision's networks as image encoders: what goes into the classifier is the picture's vector.

`cnn:resnet50` is the network; `cnn:resnet50:IMAGENET1K_V1` also says whose preprocessing, where torchvision has
several weights for one network (without it, its default ones). The weights come from a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint
from revln.models.cnn_card import classifier, weights_file
from revln.models.encoder import Encoder
from revln.models.transfer import DTYPES

__all__ = ["CnnEncoder", "load"]


class CnnEncoder(Encoder):
    """``forward`` belongs to one thread; the rest is thread-safe."""

    def __init__(
        self, info: ModelInfo, net: nn.Module, transform: Callable[[Image.Image], Tensor], device: str, dtype: str
    ) -> None:
        super().__init__(info, device, dtype)
        self._net = net.to(device=device, dtype=DTYPES[dtype])
        self._net.to(memory_format=torch.channels_last)
        self._net.eval().requires_grad_(False)
        self._transform = transform

    def prepare(self, operation: Operation, item: Any) -> Tensor:  # noqa: ARG002
        return self._transform(cast(Image.Image, item))  # (3, S, S) float32

    def join(self, operation: Operation, batch: Sequence[Tensor]) -> Mapping[str, Tensor]:  # noqa: ARG002
        return {"pixels": torch.stack(list(batch)).contiguous(memory_format=torch.channels_last)}

    def encode(self, operation: Operation, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        return cast(Tensor, self._net(inputs["pixels"]))  # (B, D)


def load(info: ModelInfo, checkpoint: Checkpoint, device: str, dtype: str) -> CnnEncoder:
    """The family's entry in `revln.models.families`.

    Raises:
        ModelUnavailable: torchvision has no such network, or the file does not fit it.
    """
    _, _, variant = info.family.partition(":")
    network, _, weights_name = variant.partition(":")
    try:
        weights = models.get_model_weights(network)
        preset = weights[weights_name] if weights_name else weights.DEFAULT
    except (ValueError, KeyError) as err:
        raise ModelUnavailable(
            f"Family {info.family}: torchvision has no such network or weights ({err}); name one as in cnn:resnet50 or "
            "cnn:resnet50:IMAGENET1K_V1."
        ) from err
    path = checkpoint.folder / weights_file(checkpoint)
    try:
        state = load_file(path)
        last = classifier(checkpoint.source, dict(state))
        net = models.get_model(network, weights=None, num_classes=len(state[last]))
        missing, unexpected = net.load_state_dict(state, strict=False)
    except (SafetensorError, RuntimeError, ValueError) as err:
        raise ModelUnavailable(f"{path} does not fit torchvision's {network}: {str(err)[:300]}") from err
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:
        raise ModelUnavailable(
            f"{path} does not fit torchvision's {network}: lacks {lacking[:3]}, has unknown {unexpected[:3]}"
        )
    net.set_submodule(last.removesuffix(".weight"), nn.Identity())
    return CnnEncoder(info, net, preset.transforms(), device, dtype)
