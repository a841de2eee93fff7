"""Every sentence of a run, and the fixed vectors that sentence encoders have for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from revln.models.base import Operation
from revln.models.registry import describe_folder, load_folder
from revln.progress_bar import tracked
from revln.training.evaluation.running import run_model
from revln.training.pixels import keep_array

__all__ = ["Sentences", "read_sentences"]

_READ_AT_ONCE = 1024


@dataclass(frozen=True)
class Sentences:
    """Sentences by their numbers, and (M, T) float16 unit vectors, memory-mapped."""

    texts: Sequence[str]
    vectors: npt.NDArray[np.float16]

    @cached_property
    def number(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    def numbers(self, texts: Sequence[str]) -> list[int]:
        return [self.number[text] for text in texts]

    def rows(self, numbers: npt.NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Return (N, T) float32 of some."""
        return torch.from_numpy(self.vectors[np.asarray(numbers, dtype=np.int64)].astype(np.float32))


def read_sentences(folders: Sequence[Path], texts: Sequence[str], cache: Path, device: str) -> Sentences:
    """Let the encoders read each sentence once, into a file named after what it hangs on.

    The vectors of several stand behind each other, so that a cosine is the mean of theirs.
    """
    infos = [describe_folder(folder) for folder in folders]
    # By length, which leaves less to pad.
    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    of = json.dumps([[info.fingerprint for info in infos], ordered])
    dims = [info.dim or 0 for info in infos]

    def fill(out: npt.NDArray[Any]) -> None:
        start = 0
        for folder, dim in zip(folders, dims, strict=True):
            model = load_folder(folder, device, "auto")
            for first in tracked(range(0, len(ordered), _READ_AT_ONCE), f"sentences by {folder.name}"):
                part = ordered[first : first + _READ_AT_ONCE]
                vectors = np.stack(run_model(model, Operation.EMBED_TEXT, part, quiet=True))
                out[first : first + len(part), start : start + dim] = vectors / np.sqrt(len(folders))
            start += dim

    path = cache / f"sentences-{hashlib.sha256(of.encode()).hexdigest()[:16]}.npy"
    return Sentences(ordered, keep_array(path, np.float16, (len(ordered), sum(dims)), fill))
