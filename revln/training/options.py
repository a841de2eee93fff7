"""What `revln train` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainOptions"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One field for each option of the command; the sizes of the networks stand in RevlnConfig."""

    data: Path
    images: Path
    out: Path
    split_train: str = "train"
    split_dev: str = "dev"
    backbone: Path | None = None  # None: random weights, for tests and for those who train the whole trunk
    extra_captions: Path | None = None
    cache: Path | None = None  # None: <out>/state
    config: Path | None = None  # a JSON file of RevlnConfig's settings; None: the defaults
    license: str = "not stated by whoever trained it"
    seed: int = 0
    text_epochs: int = 2
    joint_epochs: int = 10
    language_epochs: int = 1
    caption_epochs: int = 13
    batch: int = 128
    cut: int = 14  # trunk blocks before it are frozen and cached; 19 freezes the trunk
    views: int = 4
    hardest: float = 0.0
    threads: int = 0  # 0: torch's own choice
    bf16: bool = False
    time_limit_s: float | None = None
