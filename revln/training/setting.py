"""What all parts of one run share: options, data, networks, pictures, and how stages are run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch

from revln.training.contrast import embed_images, embed_texts
from revln.training.corpus import Photo, read_corpus
from revln.training.curves import Curves
from revln.training.options import TrainOptions
from revln.training.pixels import Augment, cache_pixels, may_be_mirrored
from revln.training.space import DevSpace
from revln.training.stage import Schedule, Stage, run_stage
from revln.training.start import start_of
from revln.training.told import hangs_on
from revln.training.views import Fresh, Kept, Views, keep_bottom

__all__ = ["Setting", "Vectors"]

Vectors = npt.NDArray[np.float32]
# Captions longer than this are rare and slow every batch that holds one.
_TRAIN_TOKENS = 32


class Setting:
    """One run. The networks are trained in place; ``config`` is replaced when something was measured."""

    def __init__(self, options: TrainOptions) -> None:
        """Raises ValidationFailed or ModelUnavailable: a file cannot be used, or options contradict each other."""
        self.options = options
        self.corpus = read_corpus(options)
        options.out.mkdir(parents=True, exist_ok=True)
        state = options.out / "state"
        state.mkdir(exist_ok=True)
        self.cache = options.cache or state
        self.device = torch.device(options.device)
        start = start_of(options, self.corpus)
        self.config, self.net, self.tokenizer, self.backbone = start.config, start.net, start.tokenizer, start.backbone
        self.net.to(self.device)
        self.net.image.to(memory_format=torch.channels_last)
        self.net.image.trunk[: options.freeze].requires_grad_(False)
        self.curves, self.dev_space = Curves(options.out), DevSpace(self.corpus)
        self._schedule = Schedule(
            options.seed,
            self.device,
            options.bf16,
            state,
            options.save_every_s,
            options.patience,
            time.monotonic() + (options.time_limit_s or math.inf),
            options.learning_rate,
            partial(hangs_on, options),
        )

    def run(self, stage: Stage) -> None:
        run_stage(stage, self._schedule, self.curves)

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Of all pictures that are trained on, captioned ones first."""
        return self._pixels(self.corpus.photos)

    @cached_property
    def dev_pixels(self) -> npt.NDArray[np.uint8]:
        return self._pixels(self.corpus.dev)

    @cached_property
    def labelled_pixels(self) -> npt.NDArray[np.uint8]:
        """Of dev's labelled pictures."""
        return self._pixels(self.corpus.dev_labelled)

    def fresh(self, augment: Augment) -> Fresh:
        return Fresh(self.net.image, self.pixels, self._mirror, augment, self.device)

    def views(self, augment: Augment) -> Views:
        """Views as ``augment`` makes them, or those of --views, which are the same for all stages."""
        maps = self._maps
        return self.fresh(augment) if maps is None else Kept(self.net.image, maps, self.options.freeze, self.device)

    def augment(self, size: int) -> Augment:
        """The views of the joint space's stages."""
        return Augment(size, self.options.least_area, self.options.colour)

    def embedded(self, images: npt.NDArray[np.uint8]) -> Vectors:
        return embed_images(self.net.image, images, self.config.mirror, self.device)

    def watched_dev(self) -> Vectors:
        return self._watched(self.dev_pixels)

    def watched_labelled(self) -> Vectors:
        return self._watched(self.labelled_pixels)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        return embed_texts(self.net.text, self.ids(texts), self.device)

    def measure(self) -> dict[str, float]:
        """How good the joint space is on dev."""
        return self.dev_space.figures(self.watched_dev, self.watched_labelled, self.embed_texts)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text)[:_TRAIN_TOKENS] for text in texts]

    def _watched(self, images: npt.NDArray[np.uint8]) -> Vectors:
        """Vectors to choose an epoch by: where a bottom is kept, quick ones, which leave mirror images out."""
        options, image = self.options, self.net.image
        if options.views is None:
            return self.embedded(images)
        whole, none = self.augment(self.config.image_size), np.zeros(len(images), dtype=np.bool_)
        maps = keep_bottom(image, options.freeze, images, none, whole, 0, self.cache, self.device)
        return Kept(image, maps, options.freeze, self.device).vectors(mirror=False)

    @cached_property
    def _mirror(self) -> npt.NDArray[np.bool_]:
        return np.array([may_be_mirrored(photo.captions) for photo in self.corpus.photos], dtype=np.bool_)

    @cached_property
    def _maps(self) -> npt.NDArray[np.float16] | None:
        options = self.options
        if options.views is None:
            return None
        augment = self.augment(self.config.image_size)
        return keep_bottom(
            self.net.image, options.freeze, self.pixels, self._mirror, augment, options.views, self.cache, self.device
        )

    def _pixels(self, photos: Sequence[Photo]) -> npt.NDArray[np.uint8]:
        return cache_pixels([each.file for each in photos], self.corpus.pictures, self.config.image_size, self.cache)
