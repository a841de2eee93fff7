"""The text half of the revln family: embeddings, a bidirectional GRU, and a pooling into the joint space.

Cho et al., EMNLP 2014 (GRU); the use beside a CNN follows Faghri et al., VSE++, BMVC 2018 (arXiv:1707.05612).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["TextEncoder", "pad"]


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged ids → (B, T) int64 padded on the right, and (B,) int64 lengths on the CPU, where packing wants them."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.full((len(rows), int(lengths.max())), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, lengths


class TextEncoder(nn.Module):
    """(B, T) ids with (B,) lengths → (B, D), unit L2 norm. Padding changes nothing: the sequences are packed."""

    def __init__(self, vocab_size: int, embedding: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.gru = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * hidden, dim)
        self.dropout = nn.Dropout(0.2)
        # torch starts embeddings at unit variance, which saturates the gates of a GRU.
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.dropout(self.embedding(ids))  # (B, T, E)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)  # (B, T, 2H)
        # The maximum over time finds the word that matters wherever it stands; padded places must not win it.
        places = torch.arange(states.shape[1], device=states.device)[None, :, None]  # (1, T, 1)
        padded = places >= lengths.to(states.device)[:, None, None]  # (B, T, 1)
        pooled = states.masked_fill(padded, torch.finfo(states.dtype).min).amax(dim=1)  # (B, 2H)
        return F.normalize(cast(Tensor, self.project(self.dropout(pooled))), dim=-1)
