"""The text half of the revln family: embeddings, a GRU each way, and a pooling into the joint space.

Cho et al., EMNLP 2014 (GRU); the use beside a CNN follows Faghri et al., VSE++, BMVC 2018 (arXiv:1707.05612).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TextEncoder", "pad"]


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged ids → (B, T) int64 padded on the right, and (B,) int64 lengths."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.full((len(rows), int(lengths.max())), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, lengths


class TextEncoder(nn.Module):
    """(B, T) ids with (B,) lengths → (B, D) float32, unit L2 norm. Padding changes nothing.

    Two one-way GRUs and not one bidirectional: packed sequences, which that would need for its way back, took four to
    eight times as long on a CPU. Read backwards, each row is turned round within its own length, so that its padding
    comes last both ways; the maximum over time asks for no order.
    """

    def __init__(self, vocab_size: int, embedding: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.rightward = nn.GRU(embedding, hidden, batch_first=True)
        self.leftward = nn.GRU(embedding, hidden, batch_first=True)
        self.project = nn.Linear(2 * hidden, dim)
        self.dropout = nn.Dropout(0.2)
        # torch starts embeddings at unit variance, which saturates the gates of a GRU.
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.to(ids.device)[:, None]  # (B, 1)
        place = torch.arange(ids.shape[1], device=ids.device)[None, :]  # (1, T)
        padded = (place >= lengths)[:, :, None]  # (B, T, 1)
        turned = torch.where(place < lengths, lengths - 1 - place, place)  # (B, T)
        ways = ((self.rightward, ids), (self.leftward, ids.gather(1, turned)))
        pooled = [self._pool(gru(self.dropout(self.embedding(row)))[0], padded) for gru, row in ways]
        projected = cast(Tensor, self.project(self.dropout(torch.cat(pooled, dim=1))))  # (B, D)
        return F.normalize(projected.float(), dim=-1)

    @staticmethod
    def _pool(states: Tensor, padded: Tensor) -> Tensor:
        """The maximum over time finds the word that matters wherever it stands; padded places must not win it."""
        return states.masked_fill(padded, torch.finfo(states.dtype).min).amax(dim=1)  # (B, H)
