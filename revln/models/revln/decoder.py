"""The decoder of the revln family: GPT-2 with cross-attention to the feature map, prompted with retrieved captions.

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
from revln.models.decoding import Decoded, Row, Tokens, copies, decode
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
    ) -> None:
        super().__init__()
        self.project = nn.Linear(channels, width)
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

    def look(self, places: Tensor) -> Tensor:
        """(B, P, C) feature map → (B, P, W), what the decoder attends to.

        A map of another size than the model's own (training sees smaller crops) gets the positions in between.
        """
        position: Tensor = self.position
        if places.shape[1] != len(position):
            own, side = (math.isqrt(n) for n in (len(position), places.shape[1]))
            grid = position.T.reshape(1, -1, own, own)
            position = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)[0].flatten(1).T
        return cast(Tensor, self.norm(self.project(places) + position))

    def logits(self, ids: Tensor, mask: Tensor, seen: Tensor | None, keep: int | Tensor = 0) -> Tensor:
        """One teacher-forced pass: (B, T) ids and mask, (B, P, W) from ``look`` or None → (B, T, V) logits.

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

    def generate(self, seen: Tensor, rows: Sequence[Row], options: CaptionOptions) -> list[list[Decoded]]:
        """Caption each picture; for each, ``num_captions``, best first.

        ``seen`` (B, P, W) is computed once a picture; beams get copies of it, never another pass of the CNN.
        """
        seen = seen.repeat_interleave(copies(options), dim=0)
        return decode(self.gpt2, rows, options, _TOKENS, seen.device, encoder_hidden_states=seen)
