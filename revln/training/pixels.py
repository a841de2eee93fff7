"""The pictures of a training: decoded once into a file, then cut, mirrored and coloured by the batch on the device."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from revln.models.revln.image_cnn import pixels
from revln.progress_bar import tracked
from revln.training.data import Albums, Pictures

__all__ = ["Augment", "View", "batches_of", "cache_pixels", "keep_array", "may_be_mirrored", "whole"]

# What a mirror image would make a lie.
_SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise|letters?|words?|sign|reads?|reading)\b", re.IGNORECASE)
_ROWS = 64


def may_be_mirrored(captions: Sequence[str]) -> bool:
    """Whether no caption of a picture names a side, or something written."""
    return not any(_SIDES.search(text) for text in captions)


def cache_pixels(files: Sequence[str], pictures: Albums | Pictures, size: int, cache: Path) -> npt.NDArray[np.uint8]:
    """(N, 3, S, S) uint8, memory-mapped: what the served model's ``prepare`` makes of each picture.

    The file is named after what it hangs on. Runs may share the folder.
    """
    if not files:
        return np.empty((0, 3, size, size), dtype=np.uint8)  # which cannot be mapped

    def fill(out: npt.NDArray[Any]) -> None:
        for i, file in enumerate(tracked(files, "pictures")):
            out[i] = pixels(pictures[file], size).numpy()

    name = hashlib.sha256(json.dumps([pictures.identity(files), size, list(files)]).encode()).hexdigest()[:16]
    return keep_array(cache / f"pixels-{name}.npy", np.uint8, (len(files), 3, size, size), fill)


def keep_array(
    path: Path, dtype: type[np.generic], shape: tuple[int, ...], fill: Callable[[npt.NDArray[Any]], None]
) -> npt.NDArray[Any]:
    """Return a memory-mapped array that ``fill`` writes once; one that was cut short is made anew."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: a second run at the same time would empty the first one's file while it is written.
        partial = path.with_suffix(f".{uuid4().hex}.part")
        try:
            out = np.lib.format.open_memmap(partial, "w+", dtype, shape)
            fill(out)
            out.flush()
            # Renamed only when whole: a run that was killed leaves a .part, never a cache with zeros in it.
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return cast("npt.NDArray[Any]", np.load(path, mmap_mode="r"))


@dataclass(frozen=True, slots=True)
class View:
    """A batch of pictures, and how each is to be seen."""

    images: Tensor  # (B, 3, S, S) uint8
    frame: Tensor  # (B, 2, 3) float32, the affine map from the view's places to the picture's
    colour: Tensor  # (B, 3) float32: brightness, contrast, saturation as factors


@dataclass(frozen=True, slots=True)
class Augment:
    """Random views: a crop of ``least`` to all of the area, mirrored where that is true, of slightly other colours."""

    size: int  # of a view's side
    least: float = 0.6
    colour: float = 0.2

    def draw(self, rng: np.random.Generator, images: npt.NDArray[np.uint8], mirror: npt.NDArray[np.bool_]) -> View:
        """``mirror``: (B,) whether a picture may be mirrored."""
        B = len(images)
        area, aspect = rng.uniform(self.least, 1.0, B), np.exp(rng.uniform(-0.2, 0.2, B))
        width, height = (np.minimum(1.0, np.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))
        x, y = (rng.uniform(-1.0, 1.0, B) * (1.0 - side) for side in (width, height))
        turned = np.where(mirror & (rng.random(B) < 0.5), -1.0, 1.0)
        zero = np.zeros(B)
        frame = np.stack([np.stack([turned * width, zero, x], 1), np.stack([zero, height, y], 1)], 1)
        colour = rng.uniform(1 - self.colour, 1 + self.colour, (B, 3))
        tensors = (torch.from_numpy(part.astype(np.float32)) for part in (frame, colour))
        return View(torch.from_numpy(images), *tensors)

    def __call__(self, view: View, device: torch.device) -> Tensor:
        """→ (B, 3, size, size) float32 in [-1, 1], channels last, on the device."""
        images = view.images.to(device, non_blocking=True).float() / 255.0  # (B, 3, S, S)
        grid = F.affine_grid(view.frame.to(device), [len(images), 3, self.size, self.size], align_corners=False)
        x = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        bright, contrast, vivid = (part[:, None, None, None] for part in view.colour.to(device).unbind(1))
        x = x * bright
        x = contrast * x + (1 - contrast) * x.mean(dim=(1, 2, 3), keepdim=True)
        x = vivid * x + (1 - vivid) * x.mean(dim=1, keepdim=True)
        return (x.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def whole(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """(B, 3, S, S) uint8 as the served model sees it: float32 in [-1, 1], channels last."""
    x = torch.from_numpy(np.array(images)).to(device).float() / 127.5 - 1.0
    return x.contiguous(memory_format=torch.channels_last)


def batches_of(n: int) -> list[slice]:
    """Slices of a size that fits any device, for passes without gradients."""
    return [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]
