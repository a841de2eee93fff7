"""The last stage: captions that the decoder samples itself, rewarded by CIDEr.

Rennie et al., Self-Critical Sequence Training, CVPR 2017 (arXiv:1612.00563); the baseline of a sample is the mean
reward of the picture's other samples (Luo, A Better Variant of Self-Critical Sequence Training, arXiv:2003.09971).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from revln.models.decoding import pad_left
from revln.models.revln.decoder import Captioner
from revln.models.revln.tokenizer import BOS, EOS, PAD, Tokenizer
from revln.training.captions import DecoderTraining
from revln.training.metrics import Cider, tokenize
from revln.training.pixels import View
from revln.training.stage import Stage, rng_of, rows_of

__all__ = ["END", "Begun", "advantages", "log_likelihoods", "sample", "self_critical_stage", "words"]

Ids = list[int]
_Batch = tuple[View, list[int], list[Ids]]  # pictures, prompts
_SELF_CRITICAL = 5  # in the keys of random generators
_SAMPLES = 5
_MOST_TOKENS = 24
# A word of its own in the reward: else a caption that breaks off ("a dog runs in a") would cost nothing.
END = "</s>"


def self_critical_stage(training: DecoderTraining, epochs: int) -> Stage:
    """One prompt a picture and pass, `_SAMPLES` captions of it; the words' weights are those of the training split."""
    data, prompter, captioner, seed = training.data, training.prompter, training.net.captioner, training.seed
    references = [[[*tokenize(text), END] for text in texts] for texts in data.captions]
    cider = Cider(references)

    def draw(epoch: int, step: int) -> _Batch:
        pictures = rows_of((seed, _SELF_CRITICAL, epoch), len(references), training.batch, step)
        rng = rng_of(seed, _SELF_CRITICAL, epoch, step)
        view = training.view(rng, pictures)
        return view, pictures.tolist(), [data.prompt(prompter, rng, i) for i in pictures.tolist()]

    def loss(item: _Batch) -> Tensor:
        view, pictures, prompts = item
        places = training.places(view)
        captioner.eval()  # samples of the decoder that is served, without dropout
        with torch.no_grad():
            told = sample(Begun.of(captioner, captioner.look(places), prompts, _SAMPLES), _MOST_TOKENS)
        rewards = [
            cider.of(words(prompter.tokenizer, ids), references[pictures[i // _SAMPLES]]) for i, ids in enumerate(told)
        ]
        likely = log_likelihoods(Begun.of(captioner, captioner.look(places), prompts, _SAMPLES), told)
        # By the batch's mean length and not each row's own: a mean over its own tokens would reward babble.
        likely = likely * len(told) / sum(map(len, told))
        return -(torch.from_numpy(advantages(np.array(rewards), _SAMPLES)).to(likely) * likely).mean()

    return training.stage("self-critical", epochs, 5e-5, draw, loss)


@dataclass(slots=True)
class Begun:
    """Prompts that the decoder has read once each, to be gone on from in N = B · copies rows, side by side."""

    captioner: Captioner
    seen: Tensor  # (N, P, W)
    mask: Tensor  # (N, T) of the tokens read so far
    cache: Any  # the library's, of those tokens
    logits: Tensor  # (N, 1, V) for the next one

    @classmethod
    def of(cls, captioner: Captioner, seen: Tensor, prompts: Sequence[Ids], copies: int) -> Begun:
        """``seen`` (B, P, W) from `Captioner.look`."""
        ids, mask = (part.to(seen.device) for part in pad_left(prompts, PAD))
        out = captioner.gpt2(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            encoder_hidden_states=seen,
            use_cache=True,
            logits_to_keep=1,
        )
        out.past_key_values.batch_repeat_interleave(copies)
        seen, mask, logits = (part.repeat_interleave(copies, dim=0) for part in (seen, mask, out.logits))
        return cls(captioner, seen, mask, out.past_key_values, logits)

    def read(self, ids: Tensor) -> Tensor:
        """(N, t) more tokens → (N, t, V) logits for those after each."""
        t = ids.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), t)], dim=1)
        out = self.captioner.gpt2(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.mask.cumsum(dim=1)[:, -t:] - 1,
            encoder_hidden_states=self.seen,
            past_key_values=self.cache,
            use_cache=True,
        )
        return cast(Tensor, out.logits)

    def keep(self, rows: Tensor) -> None:
        """Go on with some only: (N,) bool."""
        self.cache.batch_select_indices(rows)
        self.seen, self.mask = self.seen[rows], self.mask[rows]


def sample(begun: Begun, most: int) -> list[Ids]:
    """N captions of at most ``most`` tokens, end token included, from the whole distribution.

    Of a cut one, the gradient would be another.
    """
    logits = begun.logits
    going = torch.arange(len(logits), device=logits.device)  # rows of ``told`` that ``begun`` still reads
    told = going.new_full((len(logits), most), EOS)
    for t in range(most):
        chances = logits[:, -1].float().softmax(dim=-1)
        chances[:, [PAD, BOS]] = 0
        told[going, t] = torch.multinomial(chances, 1)[:, 0].where((told[going, :t] != EOS).all(dim=1), EOS)
        unended = told[going, t] != EOS
        if t + 1 == most or not unended.any():
            break
        if 2 * int(unended.sum()) < len(going):
            going = going[unended]
            begun.keep(unended)
        logits = begun.read(told[going, t, None])
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in told.tolist()]


def log_likelihoods(begun: Begun, told: Sequence[Ids]) -> Tensor:
    """(N,) sums of the log-probabilities of each caption's tokens."""
    ids = pad_sequence([torch.tensor(row) for row in told], batch_first=True, padding_value=PAD).to(begun.seen.device)
    real = ids != PAD  # (N, L); no caption holds a padding token
    rest = [begun.read(ids[:, :-1])] if ids.shape[1] > 1 else []
    logits = torch.cat([begun.logits, *rest], dim=1)[real]
    losses = F.cross_entropy(logits.float(), ids[real], reduction="none")
    return torch.zeros(len(told), device=ids.device).index_put((real.nonzero()[:, 0],), -losses, accumulate=True)


def words(tokenizer: Tokenizer, ids: Ids) -> list[str]:
    """What a sample is rewarded for, its end among it."""
    told = tokenize(tokenizer.decode([i for i in ids if i != EOS]))
    return [*told, END] if EOS in ids else told


def advantages(rewards: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float32]:
    """Each reward less the mean of the other samples of its picture: (B · samples,) → the same, float32."""
    rows = rewards.reshape(-1, samples)
    others = (rows.sum(axis=1, keepdims=True) - rows) / (samples - 1)
    return np.asarray((rows - others).reshape(-1), dtype=np.float32)
