"""What the saved state of a stage hangs on: a run that is told otherwise must not go on from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from revln.errors import ValidationFailed
from revln.models.revln.card import WEIGHTS_FILE
from revln.training.options import TrainOptions

__all__ = ["hangs_on"]

# Beside a stage's epochs: of files, what is in them. The stages before it see to theirs.
_EVERY = (
    "data", "labels", "held_out", "weights", "split_train", "extra_captions", "config", "seed", "learning_rate",
    "batch", "bf16",
)  # fmt: skip
_SPACE = (
    "init", "backbone", "data_dev", "split_dev", "teachers", "freeze", "views", "least_area", "colour", "word_dropout",
)  # fmt: skip
_OWN = {
    "text": ("init", "teachers", "classes"),
    "image": (*_SPACE, "train_size", "classes"),
    "few": (*_SPACE,),
    "joint": (*_SPACE, "teaching", "train_size", "hardest", "captioning"),
    "language": ("init",),
    "caption": ("init",),
}
_OPTION = {"teachers": "teacher", "weights": "weight"}


def hangs_on(options: TrainOptions, stage: str) -> dict[str, str]:
    """By the names on the command line."""
    names = (*_EVERY, *_OWN.get(stage, ()))
    return {"--" + _OPTION.get(name, name).replace("_", "-"): _value(options, name) for name in names}


def _value(options: TrainOptions, name: str) -> str:
    value = getattr(options, name)
    if name == "init" and value is not None:
        value = value / WEIGHTS_FILE
    if isinstance(value, Path):
        return _digest(value)
    if name in ("data", "labels"):
        value = ", ".join(map(_digest, value)) or None
    elif isinstance(value, tuple):
        value = ", ".join(map(str, value)) or None
    return "not given" if value is None else str(value)


def _digest(path: Path) -> str:
    """A file by what is in it; its name may change."""
    try:
        with path.open("rb") as file:
            return f"of sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except OSError as err:
        raise ValidationFailed(f"{path} cannot be read: {err.strerror}") from err
