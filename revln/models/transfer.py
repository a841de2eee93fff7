"""From the CPU to a model's device and dtype, beside the forward pass that runs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "Arriving", "Collated", "Transfer"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Arriving:
    """Tensors that are on the device once ``copied`` (a CUDA event) has happened; None: they are there."""

    tensors: Mapping[str, Tensor]
    copied: Any = None


@dataclass(frozen=True, slots=True)
class Collated:
    """A batch: what was sent to the device, and the prepared items, for what the forward pass needs on this side."""

    sent: Arriving
    kept: Sequence[Any]


class Transfer:
    """To a GPU from pinned memory and in a stream of its own: in the forward pass's stream the copy would come after
    all kernels that are queued there. On a CPU nothing moves. Thread-safe.
    """

    def __init__(self, device: str, dtype: str) -> None:
        self._device = device
        self._dtype = DTYPES[dtype]
        cuda: Any = torch.cuda  # without types
        self._stream: Any = None if device == "cpu" else cuda.Stream(device)

    def send(self, tensors: Mapping[str, Tensor]) -> Arriving:
        """Floating ones take the dtype of the weights, on this side: half as much to send."""
        tensors = {name: t.to(self._dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        if self._stream is None:
            return Arriving(tensors)
        with torch.cuda.stream(self._stream):
            moved = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            return Arriving(moved, self._stream.record_event())

    def receive(self, arriving: Arriving) -> Mapping[str, Tensor]:
        """For the thread that runs the forward pass: its stream waits for the copy, the processor does not."""
        if arriving.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arriving.copied)
            for tensor in arriving.tensors.values():
                # Else its memory could be given to another copy while the kernels that read it are still queued.
                tensor.record_stream(stream)
        return arriving.tensors
