"""The decoder: first the language alone, then captions of pictures, each prompted with retrieved captions.

The prompt of a picture in training never holds its own captions, and is left out for a quarter of the examples, so
that the decoder neither copies blindly nor is lost without evidence (Ramos et al., SmallCap, CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revln.models.revln.decoder import Captioner
from revln.models.revln.net import RevlnNet
from revln.models.revln.tokenizer import Tokenizer
from revln.training.pixels import Augment, View
from revln.training.stage import Stage, convolving, rng_of

__all__ = [
    "CaptionData",
    "DecoderTraining",
    "Prompter",
    "Retrieved",
    "caption_loss",
    "caption_stage",
    "language_stage",
    "target",
]

Ids = list[int]
_LANGUAGE, _CAPTION = 3, 4  # in the keys of random generators
# Share of training examples without evidence.
_DROP_EVIDENCE = 0.25
# Spread over the other tokens: a picture has five captions of the same right, and one is told at a time.
_SMOOTHING = 0.05
_TARGET_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Prompter:
    """Puts prompts together as the model will see them."""

    tokenizer: Tokenizer
    most: int  # captions
    each: int  # tokens of each

    def __call__(self, rng: np.random.Generator, captions: Sequence[str], pool: int) -> Ids:
        """A random number of the first ``pool`` of ``captions``, in their order; none for a quarter of the calls."""
        pool = min(pool, len(captions))
        most = min(self.most, pool)
        if most == 0 or rng.random() < _DROP_EVIDENCE:
            return self.tokenizer.prompt((), self.each)
        # Mostly as many as there are room for, which is what the served model gets.
        shown = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
        chosen = np.sort(rng.choice(pool, shown, replace=False))
        return self.tokenizer.prompt([(None, captions[i]) for i in chosen], self.each)


def caption_loss(captioner: Captioner, seen: Tensor | None, prompts: Sequence[Ids], targets: Sequence[Ids]) -> Tensor:
    """Mean negative log-likelihood of the targets' tokens and end tokens; the prompts' tokens cost nothing.

    In training mode the likelihood is smoothed.
    """
    logits, ids, real = captioner.teacher_forced(seen, prompts, targets)
    smoothing = _SMOOTHING if captioner.training else 0.0
    return F.cross_entropy(logits[real], ids[real], label_smoothing=smoothing)


def language_stage(
    captioner: Captioner, groups: Sequence[Sequence[str]], prompter: Prompter, epochs: int, batch: int, seed: int
) -> Stage:
    """Captions without pictures: one of a picture's captions is told, after a prompt with some of the others."""

    def example(rng: np.random.Generator, i: int) -> _Example:
        shuffled = [groups[i][j] for j in rng.permutation(len(groups[i]))]
        return _Example(i, prompter(rng, shuffled[1:], prompter.most), target(prompter.tokenizer, shuffled[0]))

    draw = _Bucketed((seed, _LANGUAGE), len(groups), batch, example)

    def loss(rows: Sequence[_Example]) -> Tensor:
        return caption_loss(captioner, None, [row.prompt for row in rows], [row.target for row in rows])

    parameters = [{"params": list(captioner.gpt2.parameters()), "lr": 1e-3}]
    modules: dict[str, nn.Module] = {"captioner": captioner}
    return Stage("language", epochs, max(1, len(groups) // batch), parameters, modules, draw, loss)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What one store gave for each picture, best first, and from how many of the first a prompt is drawn."""

    captions: Sequence[Sequence[str]]
    pool: int


@dataclass(frozen=True, slots=True)
class CaptionData:
    """Pictures, their captions, and what was retrieved for them from each store; a prompt is of one of them."""

    images: npt.NDArray[np.uint8]
    mirror: npt.NDArray[np.bool_]
    captions: Sequence[Sequence[str]]
    stores: Sequence[Retrieved]

    def prompt(self, prompter: Prompter, rng: np.random.Generator, picture: int) -> Ids:
        store = self.stores[int(rng.integers(len(self.stores)))]
        return prompter(rng, store.captions[picture], store.pool)


@dataclass(frozen=True, slots=True)
class DecoderTraining:
    """What the stages of the decoder over the trained trunk share: the best epoch is chosen by dev's CIDEr."""

    net: RevlnNet
    data: CaptionData
    prompter: Prompter
    augment: Augment
    batch: int  # pictures
    seed: int
    validate: Callable[[], dict[str, float]]
    device: torch.device

    def view(self, rng: np.random.Generator, pictures: npt.NDArray[np.int64]) -> View:
        return self.augment.draw(rng, self.data.images[pictures], self.data.mirror[pictures])

    @torch.no_grad()
    def places(self, view: View) -> Tensor:
        """(B, P, C) of the trunk, which these stages leave as it is."""
        with convolving(self.device):
            return self.net.image.places(self.augment(view, self.device))

    def stage(
        self, name: str, epochs: int, lr: float, draw: Callable[[int, int], Any], loss: Callable[[Any], Tensor]
    ) -> Stage:
        captioner = self.net.captioner
        parameters = [{"params": list(captioner.parameters()), "lr": lr}]
        steps = max(1, len(self.data.captions) // self.batch)
        return Stage(
            name, epochs, steps, parameters, {"captioner": captioner}, draw, loss, self.validate, best_by="cider"
        )


def caption_stage(training: DecoderTraining, epochs: int) -> Stage:
    """A pass tells two captions of each picture, of one view of it."""
    data, prompter, captioner, seed = training.data, training.prompter, training.net.captioner, training.seed

    def example(rng: np.random.Generator, i: int) -> _Example:
        told = data.captions[i][int(rng.integers(len(data.captions[i])))]
        return _Example(i, data.prompt(prompter, rng, i), target(prompter.tokenizer, told))

    bucketed = _Bucketed((seed, _CAPTION), len(data.captions), training.batch, example)

    def draw(epoch: int, step: int) -> tuple[View, list[_Example]]:
        rows, rng = bucketed(epoch, step), rng_of(seed, _CAPTION, epoch, step, 1)
        view = training.view(rng, np.array([row.picture for row in rows]))
        return view, [*rows, *(example(rng, row.picture) for row in rows)]

    def loss(item: tuple[View, list[_Example]]) -> Tensor:
        view, rows = item
        places = training.places(view)
        seen = captioner.look(places, training.net.image.embed(places)).repeat(2, 1, 1)
        return caption_loss(captioner, seen, [row.prompt for row in rows], [row.target for row in rows])

    return training.stage("caption", epochs, 6e-4, draw, loss)


@dataclass(frozen=True, slots=True)
class _Example:
    picture: int
    prompt: Ids
    target: Ids

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


class _Bucketed:
    """All of n in random order, but rows of like length together: padding was half of every batch without that."""

    def __init__(
        self, key: tuple[int, int], n: int, batch: int, example: Callable[[np.random.Generator, int], _Example]
    ) -> None:
        self._key, self._n, self._batch, self._example = key, n, batch, example
        self._epoch = lru_cache(maxsize=1)(self._plan)

    def __call__(self, epoch: int, step: int) -> list[_Example]:
        return self._epoch(epoch)[step]

    def _plan(self, epoch: int) -> list[list[_Example]]:
        rng, batch = rng_of(*self._key, epoch), self._batch
        order = rng.permutation(self._n)[: max(1, self._n // batch) * batch]
        plan = []
        for start in range(0, len(order), batch * 16):
            rows = sorted((self._example(rng, int(i)) for i in order[start : start + batch * 16]), key=len)
            plan += [rows[first : first + batch] for first in rng.permutation(range(0, len(rows), batch))]
        return plan


def target(tokenizer: Tokenizer, caption: str) -> Ids:
    """Without its full stop, which half of the captions lack: the end token says the same."""
    return tokenizer.encode(caption.strip().rstrip(". "))[:_TARGET_TOKENS]
