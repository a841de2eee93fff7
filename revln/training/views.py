"""How the stages see the training's pictures: cut anew in each step, or as what a frozen bottom made of a few views."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from revln.models.revln.image_cnn import ImageEncoder
from revln.progress_bar import tracked
from revln.training.contrast import embed_images
from revln.training.pixels import Augment, View, batches_of, keep_array, whole
from revln.training.stage import convolving, rng_of

__all__ = ["Fresh", "Kept", "Views", "array_name", "keep_bottom", "seen_vectors"]

Rows = npt.NDArray[np.int64]
_VIEWS = 9  # in the keys of random generators


class Views(Protocol):
    """The training's pictures, by their numbers."""

    def draw(self, rng: np.random.Generator, rows: Rows) -> Any:
        """Choose a view of each; in another thread, a step ahead."""

    def places(self, drawn: Any) -> Tensor:
        """Return the feature maps of what was drawn: (B, P, C). Blocks that are trained get gradients."""

    def seen(self, drawn: Any) -> Tensor:
        """Return what was drawn as pixels: (B, 3, S, S) float32 in [-1, 1]."""

    def whole(self) -> Iterator[Tensor]:
        """Yield the feature maps of the uncut pictures, batch by batch, without gradients."""

    def vectors(self, mirror: bool) -> npt.NDArray[np.float32]:
        """Return (N, D) of all pictures, uncut, by the image encoder as it is now."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new view in each step."""

    image: ImageEncoder
    images: npt.NDArray[np.uint8]  # (N, 3, S, S)
    mirror: npt.NDArray[np.bool_]  # (N,) whether a mirror image is true, too
    augment: Augment
    device: torch.device

    def draw(self, rng: np.random.Generator, rows: Rows) -> View:
        return self.augment.draw(rng, self.images[rows], self.mirror[rows])

    def places(self, drawn: View) -> Tensor:
        with convolving(self.device):
            return self.image.places(self.seen(drawn))

    def seen(self, drawn: View) -> Tensor:
        return self.augment(drawn, self.device)

    @torch.no_grad()
    def whole(self) -> Iterator[Tensor]:
        for at in batches_of(len(self.images)):
            yield self.image.places(whole(self.images[at], self.device))

    def vectors(self, mirror: bool) -> npt.NDArray[np.float32]:
        return embed_images(self.image, self.images, mirror, self.device)


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the views that `keep_bottom` computed; view 0 is the whole picture."""

    image: ImageEncoder
    maps: npt.NDArray[np.float16]  # (N, V + 1, C, h, w)
    freeze: int  # blocks that the maps are the output of
    device: torch.device

    def draw(self, rng: np.random.Generator, rows: Rows) -> Tensor:
        chosen = rng.integers(self.maps.shape[1], size=len(rows))
        return torch.from_numpy(np.stack([self.maps[i, v] for i, v in zip(rows, chosen, strict=True)]))

    def places(self, drawn: Tensor) -> Tensor:
        with convolving(self.device):
            x = drawn.to(self.device).float().contiguous(memory_format=torch.channels_last)
            return cast(Tensor, self.image.trunk[self.freeze :](x)).flatten(2).transpose(1, 2)

    def seen(self, drawn: Tensor) -> Tensor:
        raise NotImplementedError("a teacher that sees pictures has no kept views")  # refused by revln.training.run

    @torch.no_grad()
    def whole(self) -> Iterator[Tensor]:
        for at in batches_of(len(self.maps)):
            yield self.places(torch.from_numpy(np.array(self.maps[at, 0])))  # a mapped file is read-only

    @torch.inference_mode()
    def vectors(self, mirror: bool) -> npt.NDArray[np.float32]:  # noqa: ARG002 (no mirror images are kept)
        return torch.cat([self.image.embed(places).cpu() for places in self.whole()]).numpy()


@torch.inference_mode()
def seen_vectors(views: Fresh, most: int, n: int, mirror: bool) -> npt.NDArray[np.float32]:
    """Return the vectors of n pictures: (most, n, D), the first uncut, the others each of a view."""
    out = [views.vectors(mirror)]
    for v in range(1, most):
        rows = [np.arange(at.start, at.stop) for at in batches_of(n)]
        parts = [views.image.embed(views.places(views.draw(rng_of(_VIEWS, v, int(row[0])), row))) for row in rows]
        out.append(torch.cat(parts).cpu().numpy())
    return np.stack(out)


def keep_bottom(
    image: ImageEncoder,
    freeze: int,
    images: npt.NDArray[np.uint8],
    mirror: npt.NDArray[np.bool_],
    augment: Augment,
    views: int,
    cache: Path,
    device: torch.device,
) -> npt.NDArray[np.float16]:
    """Compute what the trunk's first ``freeze`` blocks make of the whole picture and of ``views`` views of each.

    (N, 3, S, S) uint8 → (N, views + 1, C, h, w), memory-mapped, in a file named after what it hangs on.
    """
    bottom = image.trunk[:freeze]
    weights = hashlib.sha256()
    for name, tensor in sorted(bottom.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().numpy().tobytes())
    of = [array_name(images), mirror.tolist(), weights.hexdigest(), freeze, views, augment.size, augment.least]
    with torch.inference_mode():
        like = bottom(whole(images[:1], device))[0]
    shape = (len(images), views + 1, *like.shape)

    @torch.inference_mode()
    def fill(out: npt.NDArray[Any]) -> None:
        for at in tracked(batches_of(len(images)), f"{views + 1} views"):
            out[at, 0] = bottom(whole(images[at], device)).half().cpu().numpy()
            for v in range(views):
                view = augment.draw(rng_of(_VIEWS, v, at.start), np.array(images[at]), mirror[at])
                out[at, v + 1] = bottom(augment(view, device)).half().cpu().numpy()

    name = hashlib.sha256(json.dumps([*of, augment.colour]).encode()).hexdigest()[:16]
    return keep_array(cache / f"bottom-{name}.npy", np.float16, shape, fill)


def array_name(images: npt.NDArray[np.uint8]) -> str:
    """The name of a memory-mapped file of pictures says what is in it."""
    return str(getattr(images, "filename", "")).rpartition("/")[2] or hashlib.sha256(images.tobytes()).hexdigest()
