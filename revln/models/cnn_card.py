"""What the weights file of a torchvision network says: how many features it has. Imports nothing heavy."""

from __future__ import annotations

import re

from revln.errors import ModelUnavailable
from revln.models.base import ModelInfo, Operation
from revln.models.checkpoint import Checkpoint, count_parameters, read_header

__all__ = ["classifier", "describe", "weights_file"]

# The classifier's last layer in any of torchvision's networks; what goes into it are the features.
_CLASSIFIER = re.compile(r"(fc|head|heads\.head|classifier|classifier\.\d+)\.weight")
# Which picture its preprocessing makes only torchvision knows, but none is larger than 600 (EfficientNet-B7).
_NEEDED_SIDE = 1200


def describe(name: str, family: str, checkpoint: Checkpoint) -> ModelInfo:
    """Raises ModelUnavailable if the file is missing, damaged, or not of a classifying network."""
    file = weights_file(checkpoint)
    header = read_header(checkpoint.folder / file)
    return ModelInfo(
        name=name,
        family=family,
        operations=(Operation.EMBED_IMAGE,),
        dim=int(header[classifier(checkpoint.source, header)]["shape"][1]),
        fingerprint=Checkpoint(checkpoint.source, checkpoint.folder, only=file).fingerprint(family),
        image_size=_NEEDED_SIDE,
        parameters=count_parameters(header),
    )


def weights_file(checkpoint: Checkpoint) -> str:
    """The one safetensors file: given by path, or alone in its folder."""
    if checkpoint.only is not None:
        return checkpoint.only
    if checkpoint.stated:
        return checkpoint.weights()[0]
    found = sorted(path.name for path in checkpoint.folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelUnavailable(
            f"{checkpoint.source} holds {len(found)} .safetensors files; a cnn family wants one: name it by its path."
        )
    return found[0]


def classifier(source: str, header: dict[str, object]) -> str:
    """The name of the classifier's last weight. The order of a file's tensors says nothing, their numbers do."""
    names = [name for name in header if _CLASSIFIER.fullmatch(name)]
    if not names:
        raise ModelUnavailable(
            f"{source} has no classifier among its tensors, as torchvision's networks do (fc, head, classifier); revln "
            "takes what goes into that as the picture's features."
        )
    return max(names, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
