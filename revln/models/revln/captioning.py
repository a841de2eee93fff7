"""From a picture's feature map and what was retrieved for it to captions, best first.

The evidence is read again here: each sentence by its own cosine to the picture, not by that of the item it was found
with, so that a sentence that is filed under the wrong picture is doubted. The nearest stand in the prompt, each with a
level. At the end they compete with the beams (Devlin et al., Exploring Nearest Neighbor Approaches for Image
Captioning, 2015, arXiv:1505.04467): all candidates are ranked by how likely they are to be right, which is measured on
the training's dev split and returned as the caption's confidence.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from revln.models.base import CaptionOptions, Evidence
from revln.models.decoding import Row
from revln.models.revln.card import RevlnConfig
from revln.models.revln.net import RevlnNet
from revln.models.revln.text_gru import pad
from revln.models.revln.tokenizer import PAD, Tokenizer

__all__ = ["CONFIDENCE_FEATURES", "Candidate", "PreparedCaption", "RawCaptions", "candidates", "caption"]

# What a caption's confidence is computed of, in the order of RevlnConfig.caption_confidence, after the bias.
CONFIDENCE_FEATURES = ("cosine", "log_prob", "consensus", "overlap", "is_alone", "is_evidence", "score")


@dataclass(frozen=True, slots=True)
class PreparedCaption:
    """One picture's bytes, what was retrieved for it, and how to decode.

    ``prefix`` is what the user asked it to continue; ``seed`` is the row's own.
    """

    image: Tensor  # (3, S, S) uint8
    evidence: tuple[Evidence, ...]
    prefix: tuple[int, ...]
    options: CaptionOptions
    seed: int


# The ids as told, the user's prefix included; their log-probability; how likely the caption is right.
RawCaptions = list[tuple[list[int], float, float | None]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible caption of a picture.

    Attributes:
        ids: what is told, without the user's prefix.
        log_prob: of ``ids`` after the prompt, end token included.
        cosine: of caption and picture in the joint space.
        consensus: how near the caption is to the evidence that is near the picture; None: there is no evidence.
        overlap: mean share of its tokens, pairs and triples of tokens that another sentence of the evidence has, too.
        score: of a retrieved caption, that with which it was found. It is 1 where the store holds this very picture,
            and says what the cosine does where the caption itself was found. None: the decoder wrote this one.
    """

    ids: tuple[int, ...]
    log_prob: float
    cosine: float
    consensus: float | None
    overlap: float
    score: float | None

    @property
    def features(self) -> tuple[float, ...]:
        """In the order of `CONFIDENCE_FEATURES`."""
        agreed = (0.0, 0.0, 1.0) if self.consensus is None else (self.consensus, self.overlap, 0.0)
        retrieved = (0.0, 0.0) if self.score is None else (1.0, self.score)
        return (self.cosine, self.log_prob / (len(self.ids) + 1), *agreed, *retrieved)


# A sentence that is nearer to the picture by .1 weighs e times as much.
_SHARPNESS = 10.0
_LONGEST_RUN = 3

# What a candidate tells, its log-probability, and its score if it was retrieved.
_Told = tuple[tuple[int, ...], float, float | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """The sentences that were retrieved for a picture, nearest first, with their cosines and unit vectors (E, D)."""

    told: tuple[Evidence, ...]
    ids: tuple[tuple[int, ...], ...]
    cosines: tuple[float, ...]
    vectors: Tensor

    def overlap(self, ids: Sequence[int]) -> float:
        """Return the mean overlap with the sentences, but for itself."""
        others = [_overlap(ids, other) for other in self.ids if other != tuple(ids)]
        return sum(others) / len(others) if others else 0.0

    def consensus(self, vector: Tensor) -> float | None:
        """Return the mean cosine to the sentences, weighed by how near each is, and they all are, to the picture."""
        if not self.told:
            return None
        cosines = torch.tensor(self.cosines, device=vector.device)
        shares = (_SHARPNESS * cosines).softmax(dim=0)
        return float(shares @ (self.vectors @ vector)) * max(0.0, float(shares @ cosines))


def caption(
    net: RevlnNet, config: RevlnConfig, tokenizer: Tokenizer, places: Tensor, batch: Sequence[PreparedCaption]
) -> list[RawCaptions]:
    """Return each picture's ``num_captions`` captions, best first. ``places``: (B, P, C) of the trunk."""
    options = batch[0].options
    found = candidates(net, config, tokenizer, places, batch)
    return [
        [([*item.prefix, *one.ids], one.log_prob, _confidence(config, one)) for one in ranked[: options.num_captions]]
        for item, ranked in zip(batch, (_ranked(config, options, row) for row in found), strict=True)
    ]


def candidates(
    net: RevlnNet, config: RevlnConfig, tokenizer: Tokenizer, places: Tensor, batch: Sequence[PreparedCaption]
) -> list[list[Candidate]]:
    """Return for each picture the decoder's captions, best first, and the retrieved ones that could be one."""
    options = batch[0].options
    vectors = net.image.embed(places)  # (B, D)
    known = _known(net, config, tokenizer, vectors, [item.evidence for item in batch])
    prompts = [[*_prompt(config, tokenizer, one), *item.prefix] for one, item in zip(known, batch, strict=True)]
    seen = net.captioner.look(places, vectors)
    beams = max(options.num_beams, options.num_captions)
    asked = replace(options, num_captions=beams) if _is_ranked(config, options) else options
    rows = [Row(prompt, len(item.prefix), item.seed) for prompt, item in zip(prompts, batch, strict=True)]
    written = net.captioner.generate(seen, rows, asked)
    told: list[list[_Told]] = [[(one.ids, one.log_prob, None) for one in row] for row in written]
    # What is not ranked is the decoder's own: a sample, or the one greedy caption.
    if config.caption_confidence is not None and _is_ranked(config, options):
        # No retrieved caption continues what a user began.
        near = [
            () if item.prefix else tuple(zip(one.told, one.ids, strict=True))
            for item, one in zip(batch, known, strict=True)
        ]
        for row, more in zip(told, _as_told(net, seen, prompts, near, options), strict=True):
            row.extend(more)
    flat = [(i, *one) for i, row in enumerate(told) for one in row]
    texts = _embed(net, config, tokenizer, [[*batch[i].prefix, *ids] for i, ids, *_ in flat])
    out: list[list[Candidate]] = [[] for _ in batch]
    for (i, ids, log_prob, score), vector in zip(flat, texts, strict=True):
        cosine, consensus, overlap = float(vectors[i] @ vector), known[i].consensus(vector), known[i].overlap(ids)
        out[i].append(Candidate(ids, log_prob, cosine, consensus, overlap, score))
    return out


def _is_ranked(config: RevlnConfig, options: CaptionOptions) -> bool:
    several = max(options.num_beams, options.num_captions) > 1
    return (
        options.temperature == 0 and several and (config.caption_cosine != 0 or config.caption_confidence is not None)
    )


def _known(
    net: RevlnNet,
    config: RevlnConfig,
    tokenizer: Tokenizer,
    vectors: Tensor,
    evidence: Sequence[Sequence[Evidence]],
) -> list[_Known]:
    """Read each picture's evidence."""
    rows = [tokenizer.encode(one.text.strip())[: config.text_tokens] for several in evidence for one in several]
    told = _unit(net, rows, vectors)
    out, start = [], 0
    for vector, several in zip(vectors, evidence, strict=True):
        mine = told[start : start + len(several)]  # (E, D)
        start += len(several)
        cosines = (mine @ vector).tolist()
        order = sorted(range(len(several)), key=lambda i: -cosines[i])
        out.append(
            _Known(
                tuple(several[i] for i in order),
                tuple(_ids(tokenizer, several[i].text) for i in order),
                tuple(cosines[i] for i in order),
                mine[order],
            )
        )
    return out


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Encode a sentence without its full stop, as the decoder writes."""
    return tuple(tokenizer.encode(text.strip().rstrip(". ")))


def _overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of runs of one, two and three tokens that both have, of the longer one's."""
    total = 0.0
    for n in range(1, _LONGEST_RUN + 1):
        mine, theirs = ({tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)} for ids in (one, other))
        total += len(mine & theirs) / max(1, len(mine), len(theirs))
    return total / _LONGEST_RUN


def _prompt(config: RevlnConfig, tokenizer: Tokenizer, known: _Known) -> list[int]:
    levels = config.evidence_levels
    told = [
        (None if levels is None else bisect_right(levels, cosine), one.text)
        for one, cosine in zip(known.told[: config.max_evidence], known.cosines, strict=False)
    ]
    return tokenizer.prompt(told, config.evidence_tokens)


def _as_told(
    net: RevlnNet,
    seen: Tensor,
    prompts: Sequence[Sequence[int]],
    near: Sequence[Sequence[tuple[Evidence, tuple[int, ...]]]],
    options: CaptionOptions,
) -> list[list[_Told]]:
    """Return the retrieved captions of a length that was asked for, with their log-probability after the prompt."""
    told = [
        (i, ids, one.score)
        for i, several in enumerate(near)
        for one, ids in several
        if max(1, options.min_new_tokens) <= len(ids) <= options.max_new_tokens
    ]
    out: list[list[_Told]] = [[] for _ in near]
    if told:
        owner = torch.tensor([i for i, *_ in told], device=seen.device)
        likely = net.captioner.log_probs(seen[owner], [prompts[i] for i, *_ in told], [ids for _, ids, _ in told])
        for (i, ids, score), log_prob in zip(told, likely, strict=True):
            out[i].append((ids, log_prob, score))
    return out


def _embed(net: RevlnNet, config: RevlnConfig, tokenizer: Tokenizer, captions: Sequence[Sequence[int]]) -> Tensor:
    """Return the captions' vectors as a reader would have them: encoded again from their text. (N, D) float32."""
    rows = [tokenizer.encode(tokenizer.decode(ids))[: config.text_tokens] for ids in captions]
    return _unit(net, rows, net.captioner.position)


def _unit(net: RevlnNet, rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Embed texts: (N, D) float32, unit L2 norm; what holds no word is near nothing, a vector of zeros."""
    if not rows:
        return torch.zeros(0, net.text.project.out_features, device=like.device)
    ids, lengths = pad([row or [PAD] for row in rows])
    has_words = torch.tensor([bool(row) for row in rows], device=like.device)[:, None]
    return F.normalize(net.text(ids.to(like.device), lengths), dim=-1).where(has_words, 0.0)


def _ranked(config: RevlnConfig, options: CaptionOptions, found: list[Candidate]) -> list[Candidate]:
    if not _is_ranked(config, options):
        return found

    def score(one: Candidate) -> float:
        if config.caption_confidence is not None:
            return _logit(config.caption_confidence, one)
        likely: float = one.log_prob / (len(one.ids) + 1) ** options.length_penalty
        return likely + config.caption_cosine * one.cosine

    return sorted(found, key=lambda one: -score(one))


def _logit(weights: Sequence[float], one: Candidate) -> float:
    bias, *slopes = weights
    return bias + sum(slope * value for slope, value in zip(slopes, one.features, strict=True))


def _confidence(config: RevlnConfig, one: Candidate) -> float | None:
    if config.caption_confidence is None:
        return None
    return 1 / (1 + math.exp(-_logit(config.caption_confidence, one)))
