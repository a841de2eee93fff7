"""The decoder: first sentences alone, then captions of pictures, labelled pictures and sentences in turn.

A sentence stands for its picture: the mean vector of a picture's sentences, with as much noise as makes it fit one of
them as well as a picture's vector fits its captions, takes the picture's place (Li et al., DeCap, ICLR 2023; Nukrai et
al., CapDec, EMNLP 2022), each modality's centre taken away (Zhang et al., C3, ICLR 2024). So the decoder writes of
what no captioned picture shows, and reads evidence on every subject (`revln.training.evidence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from revln.models.revln.decoder import Captioner
from revln.models.revln.net import RevlnNet
from revln.training.evidence import Prompter, Store
from revln.training.examples import DecoderData, OfCaptioned, OfLabelled, OfTexts, Planned, Row, noisy
from revln.training.stage import Stage, rng_of, steps_of

__all__ = ["DecoderTraining", "caption_loss", "caption_stage", "fitted_noise", "language_stage"]

Ids = list[int]
Vectors = npt.NDArray[np.float32]
_LANGUAGE, _CAPTION = 3, 4  # in the keys of random generators
# Spread over the other tokens: a picture has five captions of the same right, and one is told at a time.
_SMOOTHING = 0.05
# Of the caption stage's steps.
_OF_TEXTS, _OF_CAPTIONED, _OF_LABELLED = 0.50, 0.32, 0.18
_BLIND = 0.35  # share of a picture's steps that show its vector only, as those of sentences do


@dataclass(frozen=True, slots=True)
class DecoderTraining:
    """What both stages share."""

    net: RevlnNet
    data: DecoderData
    prompter: Prompter
    batch: int
    seed: int
    validate: Callable[[], dict[str, float]]
    device: torch.device

    def stage(
        self, name: str, epochs: int, steps: int, lr: float, draw: Callable[[int, int], Any], best: str | None
    ) -> Stage:
        captioner = self.net.captioner
        parameters = [{"params": list(captioner.parameters()), "lr": lr}]
        validate = self.validate if best else dict
        return Stage(name, epochs, steps, parameters, {"captioner": captioner}, draw, self.loss, validate, best)

    def loss(self, item: _Batch) -> Tensor:
        """Sentences are seen as their noisy vectors, pictures as a view's vector and, mostly, its map."""
        captioner, prompts = self.net.captioner, [row.prompt for row in item.rows]
        if item.drawn is None:
            seen = captioner.look(None, torch.from_numpy(item.vectors).to(self.device), self.data.centre)
        else:
            with torch.no_grad():  # the image encoder stays as it is
                places = self.data.views.places(item.drawn)
                vectors = self.net.image.embed(places)
            seen = captioner.look(None if item.blind else places, vectors)
        return caption_loss(captioner, seen, prompts, [row.target for row in item.rows])


def language_stage(training: DecoderTraining, epochs: int) -> Stage:
    """A pass tells one sentence of each picture, from the vector of some of them."""
    data, weights = training.data, training.data.group_weights
    planned = Planned((training.seed, _LANGUAGE), weights, training.batch, OfTexts(data, training.prompter))

    def draw(epoch: int, step: int) -> _Batch:
        return _Batch(planned(epoch, step))

    return training.stage("language", epochs, steps_of(weights, training.batch), 1.2e-3, draw, None)


def caption_stage(training: DecoderTraining, epochs: int) -> Stage:
    """A pass tells a caption of each captioned picture; steps of sentences and of labelled pictures lie between."""
    data, prompter, seed, batch = training.data, training.prompter, training.seed, training.batch
    n = len(data.captioned)
    blind = training.net.captioner.vector_tokens > 0
    parts: list[tuple[float, Sequence[float], Callable[[np.random.Generator, npt.NDArray[np.int64]], list[Row]]]] = [
        (_OF_TEXTS if blind else 0.0, data.group_weights, OfTexts(data, prompter)),
        (_OF_CAPTIONED, data.weights[:n], OfCaptioned(data, prompter)),
    ]
    if data.labelled:
        parts.append((_OF_LABELLED, data.weights[n:], OfLabelled(data, prompter)))
    kinds = [Planned((seed, _CAPTION, i), weights, batch, rows) for i, (_, weights, rows) in enumerate(parts)]
    of_captioned = steps_of(data.weights[:n], batch)
    # Of a few pictures a pass is a step or two, and the other kinds still have theirs.
    counts = [math.ceil(of_captioned * share / _OF_CAPTIONED) for share, *_ in parts]

    @lru_cache(maxsize=2)
    def order(epoch: int) -> npt.NDArray[np.int64]:
        return rng_of(seed, _CAPTION, 3, epoch).permutation(np.repeat(np.arange(len(kinds)), counts))

    def draw(epoch: int, step: int) -> _Batch:
        kind = int(order(epoch)[step])
        rows = kinds[kind](epoch, int((order(epoch)[:step] == kind).sum()))
        if kind == 0:
            return _Batch(rows)
        rng = rng_of(seed, _CAPTION, 4, epoch, step)
        pictures = np.array([row.picture for row in rows])
        return _Batch(rows, data.views.draw(rng, pictures), blind and bool(rng.random() < _BLIND))

    return training.stage("caption", epochs, sum(counts), 6e-4, draw, "dev")


def caption_loss(captioner: Captioner, seen: Tensor, prompts: Sequence[Ids], targets: Sequence[Ids]) -> Tensor:
    """Mean negative log-likelihood of the targets' tokens and end tokens; the prompts' tokens cost nothing.

    In training mode the likelihood is smoothed.
    """
    logits, ids, real = captioner.teacher_forced(seen, prompts, targets)
    smoothing = _SMOOTHING if captioner.training else 0.0
    return F.cross_entropy(logits[real], ids[real], label_smoothing=smoothing)


def fitted_noise(store: Store, groups: Sequence[Sequence[int]], wanted: float) -> tuple[float, Vectors]:
    """Return the noise with which the vector of a picture's sentences fits another of it by a cosine of ``wanted``.

    Returns:
        The noise, and the mean (D,) of such vectors.
    """
    rng, usable = rng_of(_LANGUAGE), [group for group in groups if len(group) > 1] or list(groups)
    some = [usable[i] for i in rng.permutation(len(usable))[:1500]]
    means = np.stack([store.vectors[list(group[1:] or group)].mean(axis=0) for group in some])
    told = store.vectors[[group[0] for group in some]]
    noise, moved = 0.0, means
    for noise in np.arange(0.1, 4.0, 0.1):
        moved = noisy(rng_of(_LANGUAGE, 1), means, float(noise))
        if (moved * told).sum(axis=1).mean() <= wanted:
            break
    return float(noise), moved.mean(axis=0)


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: list[Row]
    drawn: Any = None  # of the pictures; None: sentences
    blind: bool = False

    @property
    def vectors(self) -> Vectors:
        return np.stack([row.vector for row in self.rows if row.vector is not None])
