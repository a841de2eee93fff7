"""The classes that the published backbone was trained to tell: names, and what it says of each picture.

Its classifier is a thousand names for what the trunk sees, which cost nothing; cf. Frome et al., DeViSE, NeurIPS 2013.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from revln.errors import ValidationFailed
from revln.training.pixels import keep_array

__all__ = ["Classes", "class_chances", "read_classes"]

# Where the published state dicts keep their classifiers: torchvision's MobileNetV2, efficientnet_lite_pytorch.
_CLASSIFIERS = ("classifier.1", "_fc")
# What the first class is called in releases that have a class for none.
_NOTHING = "background"


@dataclass(frozen=True, slots=True)
class Classes:
    """Each class with its names, the usual one first; and the classifier, (K, 1280) and (K,)."""

    names: Sequence[tuple[str, ...]]
    weight: Tensor
    bias: Tensor


def read_classes(path: Path, backbone: Mapping[str, Tensor] | None) -> Classes:
    """Read a line a class, its names between commas.

    Raises:
        ValidationFailed: the file is missing or not UTF-8, or the backbone has no classifier of so many classes.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise ValidationFailed(f"{path} cannot be read ({err}); give --classes a text file, a line a class") from err
    key = next((key for key in _CLASSIFIERS if backbone is not None and f"{key}.weight" in backbone), None)
    if backbone is None or key is None:
        raise ValidationFailed("--classes needs a --backbone with its classifier; leave it out, or give another one")
    weight, bias = (backbone[f"{key}.{part}"].float() for part in ("weight", "bias"))
    if lines[:1] == [_NOTHING]:
        weight, bias = (part[1:] if len(part) == len(lines) else part for part in (weight, bias))
        lines = lines[1:]
    if len(lines) != len(weight):
        raise ValidationFailed(f"{path} names {len(lines)} classes, and the backbone has {len(weight)}; give its own")
    return Classes([tuple(name.strip() for name in line.split(",") if name.strip()) for line in lines], weight, bias)


def class_chances(classes: Classes, maps: Iterator[Tensor], of: Sequence[str], cache: Path) -> npt.NDArray[np.float16]:
    """Compute what the classifier says of the backbone's own feature maps: (N, K), memory-mapped.

    ``of``: what the pictures and the trunk are, by which the file is named.
    """
    digest = hashlib.sha256(json.dumps(of).encode() + classes.weight.numpy().tobytes())

    @torch.inference_mode()
    def fill(out: npt.NDArray[Any]) -> None:
        start = 0
        for part in maps:
            logits = F.linear(part.float().mean(dim=1).cpu(), classes.weight, classes.bias)
            out[start : start + len(part)] = logits.softmax(dim=1).numpy()
            start += len(part)

    path = cache / f"classes-{digest.hexdigest()[:16]}.npy"
    return keep_array(path, np.float16, (int(of[0]), len(classes.names)), fill)
