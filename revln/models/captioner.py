"""The decoder of the revln family: GPT-2 with cross-attention to the feature map, prompted with retrieved captions.

Radford et al., GPT-2, 2019; Ramos et al., SmallCap: Lightweight Image Captioning Prompted with Retrieval Augmentation,
CVPR 2023 (arXiv:2209.15323). Built on transformers' GPT2LMHeadModel and its `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from revln.models.base import CaptionOptions
from revln.models.tokenizer import BOS, EOS, PAD

__all__ = ["Captioner", "pad_left"]

# Nucleus of the sampling: the smallest set of tokens that holds this probability (Holtzman et al., ICLR 2020).
_TOP_P = 0.9


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ragged ids → (B, T) int64 padded on the LEFT, and the (B, T) int64 mask.

    On the left, because every row's next token must stand in the same column.
    """
    T = max(len(row) for row in rows)
    ids = torch.full((len(rows), T), PAD, dtype=torch.int64)
    mask = torch.zeros((len(rows), T), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, T - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, T - len(row) :] = 1
    return ids, mask


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
        """(B, P, C) feature map → (B, P, W), what the decoder attends to."""
        return cast(Tensor, self.norm(self.project(places) + self.position))

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

    @torch.inference_mode()
    def generate(
        self, seen: Tensor, prompts: Sequence[Sequence[int]], options: CaptionOptions
    ) -> list[list[tuple[list[int], float]]]:
        """Caption each picture; for each, ``num_captions`` of (tokens, log-probability), best first.

        ``seen`` (B, P, W) is computed once a picture; beams get copies of it, never another pass of the CNN.
        """
        ids, mask = (t.to(seen.device) for t in pad_left(prompts))
        settings: dict[str, Any] = {
            "max_new_tokens": options.max_new_tokens,
            "num_return_sequences": options.num_captions,
            # Neither ever stands in a caption; a sample's tail could still hold them.
            "suppress_tokens": [PAD, BOS],
            # A row that has ended is filled with end tokens: at the padding token GPT-2 warns of a missing mask.
            "pad_token_id": EOS,
        }
        if options.temperature > 0:
            settings |= {"do_sample": True, "temperature": options.temperature, "top_p": _TOP_P, "top_k": 0}
        else:
            beams = max(options.num_beams, options.num_captions)
            settings |= {"do_sample": False, "num_beams": beams}
            if beams > 1:
                settings["length_penalty"] = options.length_penalty
        out = self.gpt2.generate(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, **settings)
        new = out[:, ids.shape[1] :]  # (B·N, L)
        scores = self._score(ids, mask, seen, new, options.num_captions)
        rows = [(_until_end(row), score) for row, score in zip(new.tolist(), scores.tolist(), strict=True)]
        N = options.num_captions
        # Sampled captions come in no order, and a beam's order weighs length: best first means likeliest first only
        # for samples.
        groups = [rows[i : i + N] for i in range(0, len(rows), N)]
        return [sorted(g, key=lambda r: -r[1]) for g in groups] if options.temperature > 0 else groups

    def _score(self, ids: Tensor, mask: Tensor, seen: Tensor, new: Tensor, copies: int) -> Tensor:
        """Sum of log-probabilities of the generated tokens, end token included: (B·N,) float32.

        A second, teacher-forced pass: the scores that sampling leaves behind are those of the cut distribution.
        """
        ids, mask, seen = (t.repeat_interleave(copies, dim=0) for t in (ids, mask, seen))
        ended = (new == EOS).cumsum(dim=1)
        real = (ended == 0) | ((ended == 1) & (new == EOS))  # (B·N, L): up to the first end token, and it
        L = new.shape[1]
        whole = torch.cat([ids, new], dim=1)
        # The last generated token predicts nothing that we ask for, so the pass stops before it.
        logits = self.logits(whole[:, :-1], torch.cat([mask, real.long()], dim=1)[:, :-1], seen, keep=L)
        chosen = logits.float().log_softmax(dim=-1).gather(2, new[:, :, None])[:, :, 0]  # (B·N, L)
        return (chosen * real).sum(dim=1)


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS)] if EOS in ids else ids
