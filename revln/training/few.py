"""A few pictures of each of a few new names: the text encoder learns the names and keeps the words that it had.

The pictures' side stays as it is: it knows the things already, and what it says of all other pictures must not change.
The start is its own teacher for every word of its vocabulary (Li and Hoiem, Learning without Forgetting, ECCV 2016,
arXiv:1606.09282), and the weights are averaged with the start's (Wortsman et al., WiSE-FT, CVPR 2022,
arXiv:2109.01903).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from revln.models.revln.text_gru import TextEncoder, pad
from revln.models.revln.tokenizer import Tokenizer
from revln.training.corpus import Photo
from revln.training.labels import NAMED
from revln.training.names import names_loss, template
from revln.training.stage import Stage, rng_of

__all__ = ["KEPT_VIEWS", "few_stage", "wise"]

_FEW = 8  # in the keys of random generators
# Vectors of each picture, the uncut one's among them; and steps of a pass, in each of which one of them is seen.
KEPT_VIEWS = 8
_STEPS = 8
_WORDS = 384  # of the vocabulary, in a step
_SCALE = 30.0
# As near as this to a new name, as the start reads them, an old word may be right too.
_SYNONYMS = 0.7
_OLD_WORDS, _KEEP = 0.3, 20.0  # weights of the loss's parts beside the new names among each other
# The share that the trained weights have in the average.
_TRAINED = 0.7


@dataclass(frozen=True, slots=True)
class _Batch:
    images: Tensor  # (N, D)
    names: list[list[int]]  # K names as sentences
    words: list[list[int]]  # sentences of old words


def few_stage(
    text: TextEncoder,
    tokenizer: Tokenizer,
    photos: Sequence[Photo],
    vectors: npt.NDArray[np.float32],
    epochs: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
    best_by: str | None,
    device: torch.device,
) -> Stage:
    """``vectors``: (V, N, D) of the photos' views, which stay. A step sees all photos, which are few."""
    start = copy.deepcopy(text).eval().requires_grad_(False)
    names = sorted({name for photo in photos for name in photo.labels})
    own = torch.tensor([[name in photo.labels for name in names] for photo in photos], device=device)  # (N, K)
    taught = {word for name in names for word in name.lower().split()}
    words = [word for word in tokenizer.words() if word not in taught]

    def draw(epoch: int, step: int) -> _Batch:
        rng = rng_of(seed, _FEW, epoch, step)
        chosen = rng.integers(len(vectors), size=len(photos))
        sentence = NAMED[template(rng)]
        some = [words[i] for i in rng.permutation(len(words))[:_WORDS]]
        old = [NAMED[int(rng.integers(len(NAMED)))].format(word) for word in some]
        return _Batch(
            torch.from_numpy(vectors[chosen, np.arange(len(photos))]),
            [tokenizer.encode(sentence.format(name)) for name in names],
            [tokenizer.encode(one) for one in old],
        )

    def loss(item: _Batch) -> Tensor:
        text.dropout.eval()  # its noise would be taken for words that change
        rows, images = [*item.names, *item.words], item.images.to(device)
        told = _read(text, rows, device)
        with torch.no_grad():
            before = _read(start, rows, device)
        with torch.autocast(device.type, enabled=False):
            K = len(names)
            near = own.float() @ (before[:K] @ before[K:].T > _SYNONYMS).float() > 0  # (N, words)
            logits = _SCALE * images @ told.T  # (N, K + words)
            nothing = torch.zeros_like(own)
            among_new = names_loss(logits[:, :K], own, nothing)
            wanted = torch.cat([own, torch.zeros_like(near)], dim=1)
            among_all = names_loss(logits, wanted, torch.cat([nothing, near], dim=1))
            kept = 1 - (told[K:] * before[K:]).sum(dim=1)
            return among_new + _OLD_WORDS * among_all + (_KEEP * kept.mean() if len(item.words) else 0.0)

    groups = [{"params": list(text.parameters()), "lr": 2e-4}]
    modules: dict[str, nn.Module] = {"text": text}
    return Stage("few", epochs, _STEPS, groups, modules, draw, loss, validate, best_by)


@torch.no_grad()
def wise(text: nn.Module, start: dict[str, Tensor]) -> None:
    """Average trained weights with those of the start, in place."""
    for name, tensor in text.state_dict().items():
        tensor.copy_(torch.lerp(start[name].to(tensor), tensor, _TRAINED))


def _read(text: TextEncoder, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    ids, lengths = pad(rows)
    vectors: Tensor = text(ids.to(device), lengths)
    return vectors.float()
