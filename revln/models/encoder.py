"""What the encoders of all families share: from prepared items to unit vectors, a batch at a time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from revln.models.base import ModelInfo, Operation
from revln.models.transfer import Arriving, Transfer

__all__ = ["Encoder"]

# Pictures or texts in one forward pass: enough to fill a GPU; on a CPU more gains nothing and delays the neighbours.
_MAX_BATCH = {"cpu": 32, "cuda": 256}


class Encoder:
    """Implements revln.models.base.Overlapping but for `prepare`, `join` and `encode`, which are a family's own."""

    def __init__(self, info: ModelInfo, device: str, dtype: str) -> None:
        self.info = info
        self.device = device
        self.dtype = dtype
        self._transfer = Transfer(device, dtype)

    def join(self, operation: Operation, batch: Sequence[Any]) -> Mapping[str, Tensor]:
        """Prepared items → one batch of tensors on the CPU."""
        raise NotImplementedError

    def encode(self, operation: Operation, inputs: Mapping[str, Tensor]) -> Tensor:
        """A batch on the device → (B, D), of any length."""
        raise NotImplementedError

    def merge_key(self, operation: Operation, prepared: Any) -> Hashable:  # noqa: ARG002
        return None

    def collate(self, operation: Operation, batch: Sequence[Any]) -> Arriving:
        return self._transfer.send(self.join(operation, batch))

    @torch.inference_mode()
    def forward_collated(self, operation: Operation, collated: Arriving) -> Sequence[Tensor]:
        features = self.encode(operation, self._transfer.receive(collated))
        return list(F.normalize(features.float(), dim=-1).cpu())

    def forward(self, operation: Operation, batch: Sequence[Any]) -> Sequence[Tensor]:
        return self.forward_collated(operation, self.collate(operation, batch))

    def finish(self, operation: Operation, raw: Tensor) -> NDArray[np.float32]:  # noqa: ARG002
        return raw.numpy().astype(np.float32, copy=False)

    def max_batch(self, operation: Operation) -> int:  # noqa: ARG002
        return _MAX_BATCH["cpu" if self.device == "cpu" else "cuda"]
