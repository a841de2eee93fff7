"""What `revln train` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainOptions"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One field for each option of the command; the sizes of the networks stand in RevlnConfig."""

    out: Path
    data: tuple[Path, ...] = ()  # captioned pictures
    images: tuple[Path, ...] = ()  # of each of ``data``, or of all; none: images.zip beside each
    data_dev: Path | None = None  # None: the dev split of the first of ``data``
    labels: tuple[Path, ...] = ()  # label files
    label_images: tuple[Path, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()  # how often a pass sees the pictures of a source
    held_out: int | None = None  # every so-manieth captioned picture of a label file is measured on
    split_train: str = "train"
    split_dev: str = "dev"
    backbone: Path | None = None  # None: random weights, for tests
    init: Path | None = None  # a trained model's folder to go on from: its sizes, words and weights
    classes: Path | None = None  # names of what the backbone's classifier tells
    teachers: tuple[Path, ...] = ()  # folders of models of any family that embed pictures and texts
    teaching: float = 0.75  # their share of the joint stage's loss
    extra_captions: Path | None = None
    cache: Path | None = None  # None: <out>/state
    config: Path | None = None  # a JSON file of RevlnConfig's settings; None: the defaults
    license: str | None = None  # None: as the model or the settings to go on from say
    seed: int = 0
    learning_rate: float = 1.0  # factor on every stage's rates
    text_epochs: int | None = None  # None: 6, or 2 under a teacher that only reads
    language_epochs: int = 2
    joint_epochs: int = 14
    caption_epochs: int = 10
    patience: int = 5
    batch: int = 128
    train_size: int = 160  # pixels of a view in the joint stage
    least_area: float = 0.6  # of a picture that such a view holds
    colour: float = 0.2  # how far a view's brightness, contrast and saturation may be from the picture's
    word_dropout: float = 0.0  # share of a caption's tokens that the joint stage leaves out
    freeze: int = 0  # trunk blocks that keep the backbone's weights, from the bottom
    views: int | None = None  # of each picture, whose output of the frozen blocks is kept; None: a new one in each step
    hardest: float = 0.0
    captioning: float = 0.5
    threads: int = 0  # 0: torch's own choice
    device: str = "cpu"
    bf16: bool = False
    save_every_s: float = 300.0
    time_limit_s: float | None = None
