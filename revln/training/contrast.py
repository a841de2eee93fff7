"""The contrastive loss of the joint space, and passes of whole splits through it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from revln.models.revln.image_cnn import ImageEncoder
from revln.models.revln.text_gru import TextEncoder, pad
from revln.training.pixels import batches_of, whole
from revln.training.recall import recall_both_ways

__all__ = ["Scale", "contrastive_loss", "dev_recall", "embed_images", "embed_texts"]

# The margin of VSE++.
_MARGIN = 0.2
# A logit that adds nothing to a sum of exponentials.
_NO_NEGATIVE = -1e4


class Scale(nn.Module):
    """The learned inverse temperature, kept below 100 as CLIP keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.996))  # exp → 20, a temperature of 0.05

    def forward(self) -> Tensor:
        return self.log.exp().clamp(max=100.0)


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    owner: Tensor,
    scale: Tensor,
    hardest: float,
    fits: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """(B, D) and (N, D) unit vectors, text n of image owner[n] → scalar.

    The other captions of a picture are neither its positives in this term nor its negatives: they are left out; and so
    are pairs that ``fits`` (B, N) marks. ``extra`` (E, D) are texts of no picture, half as wrong an answer as others.
    """
    cosine = images.float() @ texts.float().T  # (B, N)
    mine = owner[None, :] == torch.arange(len(images), device=owner.device)[:, None]  # (B, N)
    mine = mine if fits is None else mine | fits
    positive = cosine[owner, torch.arange(len(texts), device=owner.device)]  # (N,)
    # Masked after scaling: −inf times the scale has no gradient with respect to the scale but NaN. The finite floor is
    # for a row that is left without any negative.
    scaled = (scale * cosine).masked_fill(mine, _NO_NEGATIVE)
    # −log(e^p / (e^p + Σ e^n)) = softplus(log Σ e^n − p), for each caption as query and as answer.
    wrong = scaled.logsumexp(dim=1)  # (B,)
    if extra is not None and len(extra):
        wrong = torch.logaddexp(wrong, (scale * images.float() @ extra.float().T).logsumexp(dim=1) - math.log(2))
    to_text = nn.functional.softplus(wrong[owner] - scale * positive)
    to_image = nn.functional.softplus(scaled.logsumexp(dim=0) - scale * positive)
    loss = (to_text + to_image).mean() / 2
    if hardest > 0:
        negatives = cosine.masked_fill(mine, -1.0)
        hinge = (_MARGIN + negatives.amax(dim=1)[owner] - positive).clamp(min=0)
        hinge = hinge + (_MARGIN + negatives.amax(dim=0) - positive).clamp(min=0)
        loss = loss + hardest * hinge.mean()
    return loss


@torch.inference_mode()
def embed_images(
    image: ImageEncoder, images: npt.NDArray[np.uint8], mirror: bool, device: torch.device
) -> npt.NDArray[np.float32]:
    """(N, 3, S, S) uint8 → (N, D), as `ImageEncoder.vectors` makes them."""
    out = np.empty((len(images), image.pool.mean.out_features), dtype=np.float32)
    for at in batches_of(len(images)):
        out[at] = image.vectors(whole(images[at], device), mirror).cpu().numpy()
    return out


@torch.inference_mode()
def embed_texts(text: TextEncoder, rows: Sequence[Sequence[int]], device: torch.device) -> npt.NDArray[np.float32]:
    """Token ids → (N, D)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.empty((len(rows), text.project.out_features), dtype=np.float32)
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        ids, lengths = pad([rows[i] for i in chosen])
        out[chosen] = text(ids.to(device), lengths).float().cpu().numpy()
    return out


def dev_recall(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owner: list[int]) -> dict[str, float]:
    """What the curves show of a dev split; ``recall``, the mean of the six, chooses the epoch."""
    i2t, t2i = recall_both_ways(images, texts, owner)
    recall = (i2t.r1 + i2t.r5 + i2t.r10 + t2i.r1 + t2i.r5 + t2i.r10) / 6
    return {"i2t_r1": i2t.r1, "i2t_r10": i2t.r10, "t2i_r1": t2i.r1, "t2i_r10": t2i.r10, "recall": recall}
