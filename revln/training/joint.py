"""The joint space: first captions against captions of the same picture, then pictures against captions.

The first stage needs no pictures (COCO captions), and teaches the GRUs which words may stand for each other. The second
is InfoNCE (van den Oord et al., 2018) with a learned temperature. Beside it, each of a weight: the hardest-negative
hinge of VSE++ (Faghri et al., 2018); the first stage's loss, so that six thousand pictures do not unteach it;
captioning from the same feature map, as in CoCa (Yu et al., 2022), which teaches the trunk what no negative asks for;
and, where there are teachers, what they answer of the same batch (`revln.training.teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from revln.models.revln.net import RevlnNet
from revln.models.revln.text_gru import TextEncoder, pad
from revln.models.revln.tokenizer import Tokenizer
from revln.training.captions import caption_loss
from revln.training.contrast import Scale, contrastive_loss
from revln.training.examples import target
from revln.training.stage import Stage, convolving, rng_of, rows_of, steps_of
from revln.training.teacher import Teacher, teaching_loss
from revln.training.views import Views

__all__ = ["JointData", "JointOptions", "Told", "joint_stage", "text_stage", "without_some"]

Ids = list[int]
_T = TypeVar("_T")
_TEXT, _JOINT = 1, 2  # in the keys of random generators


@dataclass(frozen=True, slots=True)
class JointOptions:
    """The weights beside InfoNCE's 1, and how much of a batch each sees."""

    epochs: int
    batch: int
    seed: int
    each: int = 3  # captions a picture
    hardest: float = 0.0
    between_texts: float = 0.2
    extra_texts: float = 0.2
    captioning: float = 0.5  # on the first half of the pictures
    word_dropout: float = 0.0  # of what the text encoder reads
    teaching: float = 0.75  # the teachers' share, where there are any; the rest is InfoNCE's and the hinge's
    freeze: int = 0
    best_by: str | None = "dev"  # None: nothing is measured, and the last epoch is taken


class Told(NamedTuple):
    """A caption, and its token ids."""

    text: str
    ids: Ids


@dataclass(frozen=True, slots=True)
class JointData:
    """Pictures, by the numbers of ``views``, and what is told of each: captions, or sentences with its names."""

    views: Views
    captions: Sequence[Sequence[Told]]
    weights: Sequence[float]
    extra: Sequence[Sequence[Told]]  # captions of pictures that are not here
    tokenizer: Tokenizer  # for the decoder
    prompt: Ids  # of the decoder, without evidence


def text_stage(
    text: TextEncoder, extra: Sequence[Sequence[Ids]], epochs: int, batch: int, seed: int, device: torch.device
) -> Stage:
    """Two captions of one picture, which all must have, against those of ``batch`` − 1 others."""
    scale = Scale().to(device)

    def draw(epoch: int, step: int) -> list[Ids]:
        chosen = rows_of((seed, _TEXT, epoch), [1.0] * len(extra), batch, step)
        return _pairs(rng_of(seed, _TEXT, epoch, step), [extra[i] for i in chosen])

    groups = [{"params": [*text.parameters(), *scale.parameters()], "lr": 1e-3}]
    modules: dict[str, nn.Module] = {"text": text, "scale": scale}
    steps = max(1, len(extra) // batch)
    return Stage("text", epochs, steps, groups, modules, draw, lambda rows: _between(_texts(text, rows, device), scale))


@dataclass(frozen=True, slots=True)
class _Batch:
    drawn: Any  # views
    rows: list[Ids]  # captions, up to ``each`` a picture, as the text encoder reads them
    owner: Tensor  # (N,)
    fits: Tensor  # (B, N) where a caption is one of the picture's: of a label, say, that several pictures have
    told: list[Ids]  # a caption of each of the first pictures, for the decoder
    extra: list[Ids]
    texts: list[str]  # what ``rows`` and ``extra`` were made of


def joint_stage(
    net: RevlnNet,
    data: JointData,
    options: JointOptions,
    validate: Callable[[], dict[str, float]],
    device: torch.device,
    teachers: Callable[[], Sequence[Teacher]] = tuple,
) -> Stage:
    """Pictures, each in a random view, against ``each`` random captions of each; the best epoch by dev.

    ``teachers`` is called in every step.
    """
    image, text = net.image, net.text
    scale, extra_scale = Scale().to(device), Scale().to(device)
    tail = image.trunk[options.freeze :]
    usable = [group for group in data.extra if len(group) > 1]
    told = options.batch // 2 if options.captioning > 0 else 0

    def draw(epoch: int, step: int) -> _Batch:
        rng = rng_of(options.seed, _JOINT, epoch, step)
        chosen = rows_of((options.seed, _JOINT, epoch), data.weights, options.batch, step)
        picks = [rng.permutation(len(data.captions[i]))[: options.each] for i in chosen]
        mine = [data.captions[i][j] for i, pick in zip(chosen, picks, strict=True) for j in pick]
        rows = [without_some(rng, each.ids, options.word_dropout) for each in mine]
        owner = torch.from_numpy(np.repeat(np.arange(len(chosen)), [len(pick) for pick in picks])).to(device)
        extra: list[Told] = []
        if usable and options.extra_texts > 0:
            some = rng.choice(len(usable), min(len(usable), options.batch), replace=False)
            extra = _pairs(rng, [usable[i] for i in some])
        drawn = data.views.draw(rng, chosen)
        all_of = [{each.text for each in data.captions[i]} for i in chosen]
        fits = torch.tensor([[each.text in texts for each in mine] for texts in all_of], device=device)
        first = [data.captions[i][pick[0]].text for i, pick in zip(chosen[:told], picks[:told], strict=True)]
        targets = [target(data.tokenizer, text) for text in first]
        return _Batch(
            drawn, rows, owner, fits, targets, [each.ids for each in extra], [each.text for each in (*mine, *extra)]
        )

    def loss(item: _Batch) -> Tensor:
        places = data.views.places(item.drawn)
        with convolving(device):
            vectors = image.embed(places)
        texts = _texts(text, item.rows, device)
        extra = _texts(text, item.extra, device) if item.extra else texts[:0]
        total = _contrast(vectors, texts, item, scale, options)
        if present := teachers():
            with torch.autocast(device.type, enabled=False):
                answers = [one.answers(data.views.seen(item.drawn), item.texts) for one in present]
                taught = teaching_loss(vectors, torch.cat([texts, extra]), scale(), answers)
            total = (1 - options.teaching) * total + options.teaching * taught
        if item.extra:
            total = total + options.extra_texts * _between(extra, extra_scale)
        if item.told:
            seen = net.captioner.look(places[: len(item.told)], vectors[: len(item.told)].detach())
            prompts = [data.prompt] * len(item.told)
            total = total + options.captioning * caption_loss(net.captioner, seen, prompts, item.told)
        return total

    groups = [
        {"params": [*image.pool.parameters(), *scale.parameters(), *extra_scale.parameters()], "lr": 1e-3},
        {"params": list(text.parameters()), "lr": 5e-4},
        {"params": list(net.captioner.parameters()), "lr": 5e-4},
        # The backbone knows a thousand classes that six thousand pictures cannot teach it again: slowly.
        {"params": list(tail.parameters()), "lr": 1e-4},
    ]
    modules = {"image": image, "text": text, "captioner": net.captioner, "scale": scale, "extra_scale": extra_scale}
    groups = [group for group in groups if group["params"]]
    steps = steps_of(data.weights, options.batch)
    return Stage("joint", options.epochs, steps, groups, modules, draw, loss, validate, options.best_by)


def _contrast(vectors: Tensor, texts: Tensor, item: _Batch, scale: Scale, options: JointOptions) -> Tensor:
    with torch.autocast(vectors.device.type, enabled=False):  # three digits of a cosine cannot tell near ones apart
        loss = contrastive_loss(vectors, texts, item.owner, scale(), options.hardest, item.fits)
        if options.between_texts > 0:
            first = torch.searchsorted(item.owner, torch.arange(len(vectors), device=item.owner.device))
            # Each picture's first caption in the place of the picture; it is its own positive, at no cost.
            between = contrastive_loss(texts[first], texts, item.owner, scale(), 0.0, item.fits)
            loss = loss + options.between_texts * between
    return loss


def _between(vectors: Tensor, scale: Scale) -> Tensor:
    """Of `_pairs`: (2 N, D)."""
    first, second = vectors.chunk(2)
    with torch.autocast(vectors.device.type, enabled=False):
        return contrastive_loss(first, second, torch.arange(len(first), device=vectors.device), scale(), hardest=0.0)


def _texts(text: TextEncoder, rows: list[Ids], device: torch.device) -> Tensor:
    ids, lengths = pad(rows)
    vectors: Tensor = text(ids.to(device), lengths)
    return vectors.float()


def without_some(rng: np.random.Generator, row: Ids, share: float) -> Ids:
    """A caption without a random share of its tokens, never without all: no one word is to give its picture away."""
    if share == 0:
        return row
    return [token for token, kept in zip(row, rng.random(len(row)) >= share, strict=True) if kept] or row


def _pairs(rng: np.random.Generator, groups: Sequence[Sequence[_T]]) -> list[_T]:
    """Two captions of each: all the first ones, then all the second ones."""
    pairs = [rng.choice(len(group), 2, replace=False) for group in groups]
    return [group[pair[side]] for side in (0, 1) for group, pair in zip(groups, pairs, strict=True)]
