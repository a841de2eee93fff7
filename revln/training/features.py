"""The frozen part of the trunk is run once for each picture and view; training reads its output from a file.

On two CPU cores that makes the difference between minutes and hours: the first 14 of MobileNetV2's 19 blocks hold most
of its work and few of its parameters. The blocks after the cut are trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from revln.models.image_cnn import ImageEncoder, pixels, to_unit
from revln.training.data import Pictures

__all__ = ["cache_features", "run_tail", "view"]

_BATCH = 64


def view(image: Image.Image, number: int, key: str) -> Image.Image:
    """View 0 is the picture, 1 its mirror image, the others random crops of 60 to 100 % of its area, half mirrored.

    The crop hangs on ``key`` and ``number`` alone, so that a cache built again is the same cache.
    """
    if number == 0:
        return image
    if number == 1:
        return ImageOps.mirror(image)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{key}/{number}".encode()).digest()[:8], "little"))
    width, height = (max(1, round(side * rng.uniform(0.6, 1.0) ** 0.5)) for side in image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    crop = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


@torch.no_grad()  # and not inference_mode, whose tensors could not be trained on
def cache_features(
    encoder: ImageEncoder, files: Sequence[str], pictures: Pictures, *, size: int, cut: int, views: int, cache: Path
) -> npt.NDArray[np.float16]:
    """Output of the trunk's first ``cut`` blocks: (pictures, views, C, h, w) float16, memory-mapped.

    The file is named after everything that it hangs on, so a changed backbone, size or list makes another one.
    """
    name = _name(encoder, files, size, cut, views)
    path = cache / f"{name}.npy"
    if path.is_file():
        return cast("npt.NDArray[np.float16]", np.load(path, mmap_mode="r"))
    cache.mkdir(parents=True, exist_ok=True)
    encoder.eval()
    shape = encoder.trunk[:cut](torch.zeros(1, 3, size, size)).shape[1:]
    partial = cache / f"{name}.part"
    out = np.lib.format.open_memmap(partial, "w+", np.float16, (len(files), views, *shape))
    for start in tqdm(range(0, len(files), _BATCH), desc="features", unit="batch"):
        batch = [(file, pictures[file]) for file in files[start : start + _BATCH]]
        for number in range(views):
            x = torch.stack([pixels(view(image, number, file), size) for file, image in batch])  # (B, 3, S, S)
            y = encoder.trunk[:cut](to_unit(x, torch.float32).contiguous(memory_format=torch.channels_last))
            out[start : start + len(batch), number] = y.half().numpy()
    out.flush()
    # Renamed only when whole: a run that was killed leaves a .part, never a cache with zeros in it.
    partial.replace(path)
    return cast("npt.NDArray[np.float16]", np.load(path, mmap_mode="r"))


@torch.inference_mode()
def run_tail(encoder: ImageEncoder, features: npt.NDArray[np.float16], cut: int, views: int) -> npt.NDArray[np.float16]:
    """The blocks after the cut: (N, views or more, C, h, w) → (N, views, P, 1280) float16, in memory."""
    out: npt.NDArray[np.float16] | None = None
    for start in tqdm(range(0, len(features), _BATCH), desc="feature maps", unit="batch"):
        for number in range(views):
            x = torch.from_numpy(features[start : start + _BATCH, number].astype(np.float32))
            y = encoder.places(x.contiguous(memory_format=torch.channels_last), start=cut).half().numpy()
            if out is None:
                out = np.empty((len(features), views, *y.shape[1:]), dtype=np.float16)
            out[start : start + len(y), number] = y
    assert out is not None
    return out


def _name(encoder: ImageEncoder, files: Sequence[str], size: int, cut: int, views: int) -> str:
    digest = hashlib.sha256(json.dumps([list(files), size, cut, views]).encode())
    for tensor in encoder.trunk[:cut].state_dict().values():
        digest.update(_bytes(tensor))
    return f"features-{digest.hexdigest()[:16]}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
