"""The decoder of the revln family: GPT-2 with cross-attention to the picture, prompted with retrieved captions.

It attends to the feature map, and to the picture's vector of the joint space. The vector's place can be taken by a
text's vector, with noise: so the decoder learns from texts alone to tell of what no captioned picture shows (Li et al.,
DeCap, ICLR 2023, arXiv:2303.03032; Nukrai et al., CapDec, EMNLP 2022, arXiv:2211.00575). Each modality's mean is taken
away first, since pictures and texts lie in different corners of the space (Zhang et al., C3, ICLR 2024,
arXiv:2401.08567).

Radford et al., GPT-2, 2019; Ramos et al., SmallCap: Lightweight Image Captioning Prompted with Retrieval Augmentation,
CVPR 2023 (arXiv:2209.15323). Built on transformers' GPT2LMHeadModel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from revln.models.base import CaptionOptions
from revln.models.decoding import Decoded, Row, Tokens, copies, decode, pad_left
from revln.models.revln.tokenizer import BOS, EOS, PAD

__all__ = ["Captioner"]

# Neither padding nor beginning ever stands in a caption; a sample's tail could still hold them.
_TOKENS = Tokens(pad=PAD, ends=(EOS,), never=(PAD, BOS))


class Captioner(nn.Module):
    """Feature map and prompt → caption tokens."""

    def __init__(
        self,
        channels: int,
        places: int,
        vocab_size: int,
        positions: int,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        dim: int,
        vector_tokens: int,
    ) -> None:
        """``vector_tokens``: how many places the vector of ``dim`` fills in what is attended to; 0: none."""
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.vector_tokens = vector_tokens
        self.centre: Tensor
        if vector_tokens:
            self.register_buffer("centre", torch.zeros(dim))  # the mean of pictures' vectors
            self.from_vector = nn.Sequential(
                nn.Linear(dim, 2 * width), nn.GELU(), nn.Linear(2 * width, vector_tokens * width)
            )
        self.position = nn.Parameter(torch.zeros(places, width))
        self.norm = nn.LayerNorm(width)
        self.gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=positions,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                n_inner=inner,
                add_cross_attention=True,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        )

    def look(self, places: Tensor | None, vectors: Tensor, centre: Tensor | None = None) -> Tensor:
        """Return what the decoder attends to: (B, P, C) feature map and (B, D) unit vectors → (B, n + P, W).

        ``centre`` (D,) is the mean of such vectors; None: that of pictures'. Without a map only the vector is seen.
        A map of another size than the model's own (training sees smaller crops) gets the positions in between.
        """
        parts = [] if places is None else [self.project(places) + self._positions(places.shape[1])]
        if self.vector_tokens:
            middle = self.centre if centre is None else centre
            away = F.normalize(vectors.float() - middle.float(), dim=-1)
            told = self.from_vector(away.to(self.position.dtype) * math.sqrt(away.shape[1]))
            parts.insert(0, told.unflatten(1, (self.vector_tokens, -1)))  # (B, n, W)
        return cast(Tensor, self.norm(torch.cat(parts, dim=1)))

    def _positions(self, places: int) -> Tensor:
        position: Tensor = self.position
        if places == len(position):
            return position
        own, side = (math.isqrt(n) for n in (len(position), places))
        grid = position.T.reshape(1, -1, own, own)
        return F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)[0].flatten(1).T

    def logits(self, ids: Tensor, mask: Tensor, seen: Tensor, keep: int | Tensor = 0) -> Tensor:
        """Return the logits of one teacher-forced pass: (B, T) ids and mask, (B, P, W) from ``look`` → (B, T, V).

        ``keep``: only the last so many places (0: all). Positions count real tokens, so padding shifts nothing.
        """
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, T)
        out = self.gpt2(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            encoder_hidden_states=seen,
            use_cache=False,
            logits_to_keep=keep,
        )
        return cast(Tensor, out.logits)

    def teacher_forced(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return of B prompts and targets, in one pass: (B, L, V) logits, (B, L) ids to tell, (B, L) which count.

        A target's end token counts too; L is the longest target with it.
        """
        device = self.position.device
        ids, mask = pad_left([[*prompt, *target, EOS] for prompt, target in zip(prompts, targets, strict=True)], PAD)
        ids, mask = ids.to(device), mask.to(device)
        lengths = torch.tensor([len(target) + 1 for target in targets], device=device)
        L = int(lengths.max())
        logits = self.logits(ids[:, :-1], mask[:, :-1], seen, keep=L)
        # Rows end in the same column, so a target is the last len + 1 columns of its row.
        return logits.float(), ids[:, -L:], torch.arange(L, device=device)[None, :] >= L - lengths[:, None]

    def log_probs(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[float]:
        """Return the log-probability of each target after its prompt, end token included."""
        logits, ids, real = self.teacher_forced(seen, prompts, targets)
        chances = logits.log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]  # (B, L)
        return cast("list[float]", chances.where(real, 0.0).sum(dim=1).tolist())

    def generate(self, seen: Tensor, rows: Sequence[Row], options: CaptionOptions) -> list[list[Decoded]]:
        """Caption each picture; for each, ``num_captions``, best first.

        ``seen`` (B, P, W) is computed once a picture; beams get copies of it, never another pass of the CNN.
        """
        seen = seen.repeat_interleave(copies(options), dim=0)
        return decode(self.gpt2, rows, options, _TOKENS, seen.device, encoder_hidden_states=seen)
