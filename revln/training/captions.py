"""Stage 2, the decoder: first the language alone, then captions of pictures, each prompted with retrieved captions.

The prompt of a picture in training never holds its own captions, and is left out for a quarter of the examples, so
that the decoder neither copies blindly nor is lost without evidence (Ramos et al., SmallCap, CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revln.models.captioner import Captioner
from revln.models.decoding import pad_left
from revln.models.tokenizer import EOS, PAD, Tokenizer
from revln.training.stage import Stage

__all__ = ["Prompter", "caption_loss", "caption_stage", "language_stage", "nearest_captions", "target"]

Ids = list[int]
# Share of training examples without evidence.
_DROP_EVIDENCE = 0.25


@dataclass(frozen=True, slots=True)
class Prompter:
    """Puts prompts together as the model will see them."""

    tokenizer: Tokenizer
    most: int  # captions
    each: int  # tokens of each

    def __call__(self, rng: np.random.Generator, captions: Sequence[str]) -> Ids:
        """A random number of ``captions``, which are best first, in their order; none for a quarter of the calls."""
        most = min(self.most, len(captions))
        if most == 0 or rng.random() < _DROP_EVIDENCE:
            return self.tokenizer.prompt((), self.each)
        # Drawn from twice as many as are shown, for variety: the nearest four of a picture never change.
        pool = min(2 * self.most, len(captions))
        chosen = np.sort(rng.choice(pool, int(rng.integers(1, most + 1)), replace=False))
        return self.tokenizer.prompt([captions[i] for i in chosen], self.each)


def caption_loss(captioner: Captioner, seen: Tensor | None, prompts: Sequence[Ids], targets: Sequence[Ids]) -> Tensor:
    """Mean negative log-likelihood of the targets' tokens and end tokens; the prompts' tokens cost nothing."""
    ids, mask = pad_left([[*prompt, *target, EOS] for prompt, target in zip(prompts, targets, strict=True)], PAD)
    lengths = torch.tensor([len(target) + 1 for target in targets])
    L = int(lengths.max())
    logits = captioner.logits(ids[:, :-1], mask[:, :-1], seen, keep=L)  # (B, L, V)
    # Rows end in the same column, so a target is the last len + 1 columns of its row.
    real = torch.arange(L)[None, :] >= L - lengths[:, None]  # (B, L)
    return F.cross_entropy(logits[real].float(), ids[:, -L:][real])


def nearest_captions(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owner: Sequence[int] | None, k: int
) -> npt.NDArray[np.int64]:
    """(N, D) pictures, (M, D) captions → (N, k) caption numbers, best first.

    With ``owner`` caption m belongs to picture owner[m], and is kept from it.
    """
    out = []
    of = None if owner is None else np.asarray(owner)
    for start in range(0, len(images), 512):
        scores = images[start : start + 512] @ texts.T
        if of is not None:
            scores[of[None, :] == np.arange(start, start + len(scores))[:, None]] = -np.inf
        top = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        order = np.take_along_axis(scores, top, axis=1).argsort(axis=1)[:, ::-1]
        out.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(out)


def language_stage(
    captioner: Captioner, groups: Sequence[Sequence[str]], prompter: Prompter, epochs: int, batch: int, seed: int
) -> Stage:
    """Captions without pictures: one of a picture's captions is told, after a prompt with some of the others."""

    def example(rng: np.random.Generator, i: int) -> _Example:
        shuffled = [groups[i][j] for j in rng.permutation(len(groups[i]))]
        return _Example(i, prompter(rng, shuffled[1:]), target(prompter.tokenizer, shuffled[0]))

    def batches(epoch: int) -> Iterator[list[_Example]]:
        return _bucketed(np.random.default_rng((seed, 3, epoch)), len(groups), batch, example)

    def loss(rows: list[_Example]) -> Tensor:
        return caption_loss(captioner, None, [row.prompt for row in rows], [row.target for row in rows])

    parameters = [{"params": list(captioner.gpt2.parameters()), "lr": 1e-3}]
    modules: dict[str, nn.Module] = {"captioner": captioner}
    return Stage("language", epochs, max(1, len(groups) // batch), parameters, modules, batches, loss)


def caption_stage(
    captioner: Captioner,
    places: npt.NDArray[np.float16],
    captions: Sequence[Sequence[str]],
    evidence: Sequence[Sequence[str]],
    prompter: Prompter,
    *,
    epochs: int,
    batch: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
) -> Stage:
    """Pictures' feature maps (N, views, P, C), their captions and what was retrieved for them; one caption a pass."""

    def example(rng: np.random.Generator, i: int) -> _Example:
        told = captions[i][int(rng.integers(len(captions[i])))]
        return _Example(i, prompter(rng, evidence[i]), target(prompter.tokenizer, told))

    def batches(epoch: int) -> Iterator[tuple[Tensor, list[_Example]]]:
        rng = np.random.default_rng((seed, 4, epoch))
        for rows in _bucketed(rng, len(captions), batch, example):
            views = rng.integers(places.shape[1], size=len(rows))
            yield torch.from_numpy(places[[row.picture for row in rows], views].astype(np.float32)), rows

    def loss(item: tuple[Tensor, list[_Example]]) -> Tensor:
        x, rows = item
        seen = captioner.look(x)
        return caption_loss(captioner, seen, [row.prompt for row in rows], [row.target for row in rows])

    parameters = [{"params": list(captioner.parameters()), "lr": 1e-3}]
    modules: dict[str, nn.Module] = {"captioner": captioner}
    steps = max(1, len(captions) // batch)
    return Stage("caption", epochs, steps, parameters, modules, batches, loss, validate)


@dataclass(frozen=True, slots=True)
class _Example:
    picture: int
    prompt: Ids
    target: Ids

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def _bucketed(
    rng: np.random.Generator, n: int, batch: int, example: Callable[[np.random.Generator, int], _Example]
) -> Iterator[list[_Example]]:
    """All of n in random order, but rows of like length together: padding was half of every batch without that."""
    order = rng.permutation(n)[: max(1, n // batch) * batch]
    for start in range(0, len(order), batch * 16):
        rows = sorted((example(rng, int(i)) for i in order[start : start + batch * 16]), key=len)
        for first in rng.permutation(range(0, len(rows), batch)):
            yield rows[first : first + batch]


def target(tokenizer: Tokenizer, caption: str) -> Ids:
    """Without its full stop, which half of the captions lack: the end token says the same."""
    return tokenizer.encode(caption.strip().rstrip(". "))[:40]
