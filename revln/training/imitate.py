"""The text encoder learns the sentence encoder's space, through the head that the pictures have learned against.

On every sentence there is, so that a GRU of a few megabytes knows words of which no picture is there; beside it, the
fixed vectors of the pictures say what of the space matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revln.models.revln.text_gru import TextEncoder, pad
from revln.training.contrast import Scale, contrastive_loss
from revln.training.examples import noisy
from revln.training.image import SpaceData
from revln.training.names import class_loss, names_loss, template
from revln.training.stage import Stage, endless_rows, rng_of

__all__ = ["imitate_stage"]

Ids = list[int]
Vectors = npt.NDArray[np.float32]
_IMITATE = 7  # in the keys of random generators
_VIEW_NOISE = 0.35  # so that few pictures' vectors are not known by heart
_EXTRA, _LABELLED, _MOST_NAMES, _MOST_CLASSES = 2, 2, 140, 100  # sentences, pictures: times the batch
_SURE = 30.0  # the scale at which a sentence is to be told from the batch's others
# Of the parts of the loss.
_COSINE, _TELL, _CONTRAST, _NAMES, _CLASSES = 3.0, 0.3, 0.5, 0.3, 0.1


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: list[int]  # sentences: captions, extra ones, names, classes
    counts: tuple[int, int, int, int]
    owner: Tensor  # of the captions
    fits: Tensor
    images: Vectors  # of the captioned pictures, then of the labelled ones
    own: Tensor  # (L, names)
    left_out: Tensor
    chances: Tensor | None  # (pictures, classes)


def imitate_stage(
    text: TextEncoder,
    data: SpaceData,
    ids: Callable[[Sequence[int]], list[Ids]],
    wanted: Vectors,
    pictures: Vectors,
    epochs: int,
    batch: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
    best_by: str | None,
    device: torch.device,
) -> Stage:
    """A pass sees each sentence once. ``wanted`` (M, D) of all sentences, ``pictures`` (N, D): fixed unit vectors."""
    scales = nn.ModuleList(Scale() for _ in range(3)).to(device)
    n, names, target = len(data.captioned), data.names, torch.from_numpy(wanted)
    extra = min(_EXTRA * batch, len(data.free))
    steps = max(1, len(data.free) // extra)

    def draw(epoch: int, step: int) -> _Batch:
        rng, at = rng_of(seed, _IMITATE, epoch, step), epoch * steps + step
        shown = endless_rows((seed, _IMITATE, 0), data.weights[:n], batch, at)
        labelled = endless_rows((seed, _IMITATE, 1), data.weights[n:], _LABELLED * batch, at)
        picks = [rng.permutation(data.captioned[i])[:2].tolist() for i in shown]
        captions = [j for pick in picks for j in pick]
        free = data.free[endless_rows((seed, _IMITATE, 2), [1.0] * len(data.free), extra, at)]
        k = template(rng)
        some = rng.permutation(np.flatnonzero(names.own[labelled].any(dim=0).numpy()))[:_MOST_NAMES]
        classes = rng.permutation(len(data.classes))[:_MOST_CLASSES] if data.chances is not None else np.array([], int)
        own = names.own[labelled][:, some]
        labelled, own = labelled[own.any(dim=1).numpy()], own[own.any(dim=1)]
        seen = np.concatenate([shown, labelled + n])
        parts = [captions, free.tolist(), names.told[some, k].tolist(), data.classes[classes, k].tolist()]
        chances = None if data.chances is None else torch.from_numpy(data.chances[seen][:, classes].astype(np.float32))
        sets = [set(data.captioned[i]) for i in shown]
        return _Batch(
            rows=[j for part in parts for j in part],
            counts=(len(parts[0]), len(parts[1]), len(parts[2]), len(parts[3])),
            owner=torch.tensor([k for k, pick in enumerate(picks) for _ in pick], dtype=torch.int64),
            fits=torch.tensor([[j in one for j in captions] for one in sets]).view(len(sets), len(captions)),
            images=noisy(rng, pictures[seen], _VIEW_NOISE),
            own=own,
            left_out=own.float() @ names.near[some][:, some].float() > 0,
            chances=chances,
        )

    def loss(item: _Batch) -> Tensor:
        vectors = _read(text, ids(item.rows), device)
        with torch.autocast(device.type, enabled=False):
            told, free, named, classes = torch.split(vectors, list(item.counts))
            images = torch.from_numpy(item.images).to(device)
            like = target[item.rows].to(device)
            whole = torch.cat([told, free])
            # Each sentence once: the twin of one would be its wrong answer.
            first = torch.tensor(sorted({j: i for i, j in enumerate(item.rows[: len(whole)])}.values()), device=device)
            among = _SURE * whole[first] @ like[first].T
            total = _COSINE * (1 - (vectors * like).sum(dim=1)).mean()
            total = total + _TELL * F.cross_entropy(among, torch.arange(len(first), device=device))
            shown = len(item.fits)
            if shown:
                owner, fits = item.owner.to(device), item.fits.to(device)
                total = total + _CONTRAST * contrastive_loss(images[:shown], told, owner, scales[0](), 0.0, fits)
            if len(item.own):
                logits = scales[1]() * images[shown:] @ named.T
                total = total + _NAMES * names_loss(logits, item.own.to(device), item.left_out.to(device))
            if item.chances is not None:
                said = item.chances.to(device)
                total = total + _CLASSES * class_loss(
                    scales[2]() * images @ classes.T, said / said.sum(dim=1, keepdim=True).clamp(min=1e-6)
                )
        return total

    groups = [{"params": [*text.parameters(), *scales.parameters()], "lr": 2e-3}]
    modules: dict[str, nn.Module] = {"text": text, "scales": scales}
    return Stage("text", epochs, steps, groups, modules, draw, loss, validate, best_by)


def _read(text: TextEncoder, rows: Sequence[Ids], device: torch.device) -> Tensor:
    """(N, D), read in parts of like length, which leaves less to pad."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [order[start : start + 96] for start in range(0, len(order), 96)]
    out = []
    for part in parts:
        ids, lengths = pad([rows[i] for i in part])
        out.append(text(ids.to(device), lengths).float())
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(out)[back.to(device)]
