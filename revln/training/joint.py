"""Stage 1, the joint space: first captions against captions of the same picture, then pictures against captions.

The first part needs no pictures (COCO captions), and teaches the GRU which words may stand for each other. The second
is InfoNCE (van den Oord et al., 2018) with a learned temperature, and the hardest-negative hinge of VSE++ beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from revln.models.image_cnn import ImageEncoder
from revln.models.text_gru import TextEncoder, pad
from revln.training.recall import recall_both_ways
from revln.training.stage import Stage

__all__ = ["Scale", "contrastive_loss", "dev_recall", "embed_features", "embed_texts", "joint_stage", "text_stage"]

Ids = list[int]
# The margin of VSE++.
_MARGIN = 0.2


class Scale(nn.Module):
    """The learned inverse temperature, kept below 100 as CLIP keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.996))  # exp → 20, a temperature of 0.05

    def forward(self) -> Tensor:
        return self.log.exp().clamp(max=100.0)


def contrastive_loss(images: Tensor, texts: Tensor, owner: Tensor, scale: Tensor, hardest: float) -> Tensor:
    """(B, D) and (N, D) unit vectors, text n of image owner[n] → scalar.

    The other captions of a picture are neither its positives in this term nor its negatives: they are left out.
    """
    cosine = images.float() @ texts.float().T  # (B, N)
    mine = owner[None, :] == torch.arange(len(images), device=owner.device)[:, None]  # (B, N)
    positive = cosine[owner, torch.arange(len(texts), device=owner.device)]  # (N,)
    # Masked after scaling: −inf times the scale has no gradient with respect to the scale but NaN.
    scaled = (scale * cosine).masked_fill(mine, -torch.inf)
    # −log(e^p / (e^p + Σ e^n)) = softplus(log Σ e^n − p), for each caption as query and as answer.
    to_text = nn.functional.softplus(scaled.logsumexp(dim=1)[owner] - scale * positive)
    to_image = nn.functional.softplus(scaled.logsumexp(dim=0) - scale * positive)
    loss = (to_text + to_image).mean() / 2
    if hardest > 0:
        negatives = cosine.masked_fill(mine, -1.0)
        hinge = (_MARGIN + negatives.amax(dim=1)[owner] - positive).clamp(min=0)
        hinge = hinge + (_MARGIN + negatives.amax(dim=0) - positive).clamp(min=0)
        loss = loss + hardest * hinge.mean()
    return loss


def text_stage(text: TextEncoder, groups: Sequence[Sequence[Ids]], epochs: int, batch: int, seed: int) -> Stage:
    """Two captions of one picture against those of ``batch`` − 1 others."""
    usable = [group for group in groups if len(group) > 1]
    scale = Scale()

    def batches(epoch: int) -> Iterator[list[Ids]]:
        rng = np.random.default_rng((seed, 1, epoch))
        for chosen in _shuffled(rng, len(usable), batch):
            pairs = [rng.choice(len(usable[i]), 2, replace=False) for i in chosen]
            first = [usable[i][pair[0]] for i, pair in zip(chosen, pairs, strict=True)]
            yield first + [usable[i][pair[1]] for i, pair in zip(chosen, pairs, strict=True)]

    def loss(rows: list[Ids]) -> Tensor:
        vectors = text(*pad(rows))  # (2B, D)
        first, second = vectors.chunk(2)
        return contrastive_loss(first, second, torch.arange(len(first)), scale(), hardest=0.0)

    groups_ = [{"params": [*text.parameters(), *scale.parameters()], "lr": 1e-3}]
    modules: dict[str, nn.Module] = {"text": text, "scale": scale}
    return Stage("text", epochs, _steps(len(usable), batch), groups_, modules, batches, loss)


@dataclass(frozen=True, slots=True)
class _Batch:
    features: Tensor  # (B, C, h, w) float32, the trunk's output at the cut
    rows: list[Ids]  # captions, ``each`` a picture
    owner: Tensor  # (N,)


def joint_stage(
    image: ImageEncoder,
    text: TextEncoder,
    features: npt.NDArray[np.float16],
    captions: Sequence[Sequence[Ids]],
    *,
    cut: int,
    epochs: int,
    batch: int,
    each: int,
    hardest: float,
    seed: int,
    validate: Callable[[], dict[str, float]],
) -> Stage:
    """Pictures (one random view of each, read at the cut) against ``each`` random captions of each."""
    scale = Scale()
    tail = list(image.trunk[cut:].parameters())

    def batches(epoch: int) -> Iterator[_Batch]:
        rng = np.random.default_rng((seed, 2, epoch))
        for chosen in _shuffled(rng, len(captions), batch):
            views = rng.integers(features.shape[1], size=len(chosen))
            x = torch.from_numpy(features[chosen, views].astype(np.float32))
            picks = [rng.permutation(len(captions[i]))[:each] for i in chosen]
            rows = [captions[i][j] for i, pick in zip(chosen, picks, strict=True) for j in pick]
            owner = np.repeat(np.arange(len(chosen)), [len(pick) for pick in picks])
            yield _Batch(x, rows, torch.from_numpy(owner))

    def loss(item: _Batch) -> Tensor:
        # Measured on an AVX512-BF16 CPU: the GRU's pass takes half the time in bfloat16, the convolutions' 1.5 times.
        with torch.autocast("cpu", enabled=False):
            places = image.places(item.features.contiguous(memory_format=torch.channels_last), start=cut)
            vectors = image.embed(places)
        texts = text(*pad(item.rows)).float()
        with torch.autocast("cpu", enabled=False):  # three digits of a cosine are too few to tell near ones apart
            return contrastive_loss(vectors, texts, item.owner, scale(), hardest)

    groups = [
        {"params": [*image.pool.parameters(), *scale.parameters()], "lr": 1e-3},
        {"params": list(text.parameters()), "lr": 5e-4},
    ]
    if tail:
        # The backbone knows a thousand classes that six thousand pictures cannot teach it again: slowly.
        groups.append({"params": tail, "lr": 1e-4})
    modules: dict[str, nn.Module] = {"image": image, "text": text, "scale": scale}
    return Stage("joint", epochs, _steps(len(captions), batch), groups, modules, batches, loss, validate)


@torch.inference_mode()
def embed_features(image: ImageEncoder, features: npt.NDArray[np.float16], cut: int) -> npt.NDArray[np.float32]:
    """(N, views, C, h, w) → (N, D), of view 0."""
    out = []
    for start in range(0, len(features), 64):
        x = torch.from_numpy(features[start : start + 64, 0].astype(np.float32))
        out.append(image.embed(image.places(x.contiguous(memory_format=torch.channels_last), start=cut)))
    return torch.cat(out).numpy()


@torch.inference_mode()
def embed_texts(text: TextEncoder, rows: Sequence[Ids]) -> npt.NDArray[np.float32]:
    """Token ids → (N, D)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.empty((len(rows), text.project.out_features), dtype=np.float32)
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        out[chosen] = text(*pad([rows[i] for i in chosen])).numpy()
    return out


def dev_recall(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owner: list[int]) -> dict[str, float]:
    """What the curves show of a dev split."""
    i2t, t2i = recall_both_ways(images, texts, owner)
    return {"i2t_r10": i2t.r10, "t2i_r10": t2i.r10}


def _steps(n: int, batch: int) -> int:
    return max(1, n // batch)


def _shuffled(rng: np.random.Generator, n: int, batch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Whole batches only: a short one has fewer negatives and so another loss. Fewer than one batch is one batch."""
    order = rng.permutation(n)
    for step in range(_steps(n, batch)):
        yield order[step * batch : (step + 1) * batch]
