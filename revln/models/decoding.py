"""From prompts to captions: greedy, beam search and nucleus sampling, many rows in one forward pass.

Built on transformers' `generate` with its KV cache. What it lacks is added by processors of the scores that hang on one
row alone, so that a row comes out the same in any batch: prompts of different length stand in one batch padded on the
left, rules against repetition count the caption only and not its prompt, and chance comes from a row's own seed.

Beam search with length penalty: Wu et al., arXiv:1609.08144. Nucleus sampling: Holtzman et al., ICLR 2020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from revln.models.base import CaptionOptions

__all__ = ["Decoded", "Row", "Tokens", "copies", "decode", "pad_left", "seed_from"]

# Below it, sampling is greedy in float32.
_LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True, slots=True)
class Row:
    """What one picture's caption is decoded from.

    Attributes:
        prompt: token ids.
        prefix: how many of the prompt's last ids are the beginning of the caption itself.
        seed: of the chance in sampling; `seed_from` makes one.
    """

    prompt: Sequence[int]
    prefix: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """Generated ids, without prompt and end token; the sum of their natural log-probabilities, end token included."""

    ids: tuple[int, ...]
    log_prob: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Special tokens: any of ``ends`` ends a caption, none of ``never`` may stand in one."""

    pad: int
    ends: tuple[int, ...]
    never: tuple[int, ...] = ()


def seed_from(seed: int, *parts: bytes) -> int:
    """A row's own seed in [0, 2⁶³): from the request's and from what is decoded, or all pictures share their chance."""
    digest = hashlib.sha256(seed.to_bytes(8, "little"))
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def copies(options: CaptionOptions) -> int:
    """How many rows of a batch one picture takes: a beam search finds several captions in one, sampling in several."""
    return options.num_captions if options.temperature > 0 else 1


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ragged ids → (B, T) int64 padded on the LEFT, and the (B, T) int64 mask.

    On the left, because every row's next token must stand in the same column.
    """
    T = max(len(row) for row in rows)
    ids = torch.full((len(rows), T), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), T), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, T - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, T - len(row) :] = 1
    return ids, mask


@torch.inference_mode()
def decode(
    net: Any, rows: Sequence[Row], options: CaptionOptions, tokens: Tokens, device: str | torch.device, **inputs: Any
) -> list[list[Decoded]]:
    """For each row its ``num_captions`` captions, best first: by beam score, sampled ones by log-probability.

    ``net`` is any model of transformers that generates; ``inputs`` are what it wants beside the ids, for
    ``len(rows) · copies(options)`` rows, each row's copies side by side.
    """
    N = copies(options)
    spread = [Row(row.prompt, row.prefix, _copy_seed(row.seed, i)) for row in rows for i in range(N)]
    ids, mask = (t.to(device) for t in pad_left([row.prompt for row in spread], tokens.pad))
    decoder_of_two = bool(net.config.is_encoder_decoder)
    named = ("decoder_input_ids", "decoder_attention_mask") if decoder_of_two else ("input_ids", "attention_mask")
    beams = 1 if options.temperature > 0 else max(options.num_beams, options.num_captions)
    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": min(options.min_new_tokens, options.max_new_tokens),
        "num_beams": beams,
        "num_return_sequences": 1 if options.temperature > 0 else options.num_captions,
        "do_sample": False,  # sampling is a processor too, see _Sample
        "eos_token_id": list(tokens.ends),
        # A row that has ended is filled with end tokens: at the padding token some models warn of a missing mask.
        "pad_token_id": tokens.ends[0],
        "logits_processor": _rules(spread, options, ids.shape[1], beams),
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    if tokens.never:
        settings["suppress_tokens"] = list(tokens.never)
    if beams > 1:
        settings["length_penalty"] = options.length_penalty
    out = net.generate(**dict(zip(named, (ids, mask), strict=True)), **inputs, **settings)
    new = out.sequences[:, ids.shape[1] :]  # (R, L)
    found = _scored(new, out.logits, out.beam_indices if beams > 1 else None, tokens.ends)
    each = options.num_captions
    groups = [found[i : i + each] for i in range(0, len(found), each)]
    return [sorted(group, key=lambda one: -one.log_prob) for group in groups] if options.temperature > 0 else groups


def _scored(new: Tensor, logits: Sequence[Tensor], beams: Tensor | None, ends: tuple[int, ...]) -> list[Decoded]:
    """(R, L) new ids and every step's (rows, V) logits → captions with the model's own log-probability.

    That of the logits as they came, not of what the rules and the sampling made of them. ``beams`` (R, L): the row of
    the logits that each token was chosen from.
    """
    R, L = new.shape
    is_end = torch.isin(new, torch.tensor(ends, device=new.device))
    ended = is_end.cumsum(dim=1)
    real = (ended == 0) | ((ended == 1) & is_end)  # up to the first end token, and it
    total = torch.zeros(R, device=new.device)
    for t in range(L):
        from_row = torch.arange(R, device=new.device) if beams is None else beams[:, t].clamp(min=0).long()
        chances = logits[t][from_row].float().log_softmax(dim=-1)  # (R, V)
        total += chances.gather(1, new[:, t, None])[:, 0].where(real[:, t], 0.0)
    kept = (real & ~is_end).sum(dim=1).tolist()
    return [Decoded(tuple(row[:n]), score) for row, n, score in zip(new.tolist(), kept, total.tolist(), strict=True)]


def _copy_seed(seed: int, copy: int) -> int:
    return seed if copy == 0 else seed_from(seed, copy.to_bytes(4, "little"))


def _rules(rows: Sequence[Row], options: CaptionOptions, width: int, beams: int) -> LogitsProcessorList:
    rules = LogitsProcessorList()
    starts = [width - row.prefix for row in rows for _ in range(beams)]  # the column where the caption begins
    if options.repetition_penalty != 1.0:
        rules.append(_PenalizeRepetition(options.repetition_penalty, starts))
    if options.no_repeat_ngram_size:
        rules.append(_ForbidRepeats(options.no_repeat_ngram_size, starts))
    if options.temperature > 0:
        rules.append(_Sample([row.seed for row in rows], options.temperature, options.top_p))
    return rules


class _PenalizeRepetition(LogitsProcessor):  # type: ignore[misc]
    """Tokens that the caption already has get less likely. Those of its prompt do not: evidence is there to be told."""

    def __init__(self, penalty: float, starts: Sequence[int]) -> None:
        self._starts = torch.tensor(starts)
        self._inner = RepetitionPenaltyLogitsProcessor(float(penalty), prompt_ignore_length=self._starts)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._inner.prompt_ignore_length = self._starts = self._starts.to(input_ids.device)
        return cast(Tensor, self._inner(input_ids, scores))


class _ForbidRepeats(LogitsProcessor):  # type: ignore[misc]
    """No run of ``size`` tokens twice in one caption."""

    def __init__(self, size: int, starts: Sequence[int]) -> None:
        self._starts = starts
        self._inner = NoRepeatNGramLogitsProcessor(size)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [
            self._inner(input_ids[i : i + 1, start:], scores[i : i + 1])
            if start < input_ids.shape[1]
            else scores[i, None]
            for i, start in enumerate(self._starts)
        ]
        return torch.cat(rows)


class _Sample(LogitsProcessor):  # type: ignore[misc]
    """Makes the largest score that of a token drawn from the nucleus.

    Gumbel noise from a row's own generator, always on the CPU so that a seed means the same on every device; the
    library's sampling draws all rows from one generator, so that a row would hang on its neighbours.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = max(temperature, _LEAST_TEMPERATURE)
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self._temperature
        if self._nucleus is not None:
            scores = self._nucleus(input_ids, scores)
        V = scores.shape[1]
        noise = torch.stack([torch.empty(V).exponential_(generator=each) for each in self._generators])  # (R, V)
        return scores - noise.clamp(min=torch.finfo(torch.float32).tiny).log().to(scores.device)
