"""The last stage: captions that the decoder samples itself, rewarded by CIDEr.

Rennie et al., Self-Critical Sequence Training, CVPR 2017 (arXiv:1612.00563); the baseline of a sample is the mean
reward of the picture's other samples (Luo, A Better Variant of Self-Critical Sequence Training, arXiv:2003.09971).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from revln.models.base import CaptionOptions
from revln.models.captioner import Captioner
from revln.models.decoding import Row
from revln.training.captions import DecoderTraining, teacher_forced
from revln.training.metrics import Cider, tokenize
from revln.training.pixels import View
from revln.training.stage import Stage, rng_of, rows_of

__all__ = ["advantages", "self_critical_stage"]

Ids = list[int]
_Batch = tuple[View, list[int], list[Ids], list[int]]  # pictures, prompts, seeds
_SELF_CRITICAL = 5  # in the keys of random generators
_SAMPLES = 5
# From the whole distribution: of a cut one, the gradient would be another.
_SAMPLING = CaptionOptions(num_beams=1, num_captions=_SAMPLES, temperature=1.0, top_p=1.0)


def self_critical_stage(training: DecoderTraining, epochs: int) -> Stage:
    """One prompt a picture and pass, `_SAMPLES` captions of it; the words' weights are those of the training split."""
    data, prompter, captioner, seed = training.data, training.prompter, training.net.captioner, training.seed
    references = [[tokenize(text) for text in texts] for texts in data.captions]
    cider = Cider(references)

    def draw(epoch: int, step: int) -> _Batch:
        pictures = rows_of((seed, _SELF_CRITICAL, epoch), len(references), training.batch, step)
        rng = rng_of(seed, _SELF_CRITICAL, epoch, step)
        view = training.view(rng, pictures)
        prompts = [data.prompt(prompter, rng, i) for i in pictures.tolist()]
        return view, pictures.tolist(), prompts, rng.integers(2**62, size=len(pictures)).tolist()

    def loss(item: _Batch) -> Tensor:
        view, pictures, prompts, seeds = item
        places = training.places(view)
        captioner.eval()  # samples of the decoder that is served, without dropout
        rows = [Row(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        with torch.no_grad():
            several = captioner.generate(captioner.look(places), rows, _SAMPLING)
        told = [list(one.ids) for samples in several for one in samples]
        rewards = [
            cider.of(tokenize(prompter.tokenizer.decode(row)), references[pictures[i // _SAMPLES]])
            for i, row in enumerate(told)
        ]
        advantage = advantages(np.array(rewards), _SAMPLES)
        likely = _log_likelihood(captioner, captioner.look(places), prompts, told)
        return -(torch.from_numpy(advantage).to(likely) * likely).mean()

    return training.stage("self-critical", epochs, 5e-5, draw, loss)


def advantages(rewards: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float32]:
    """Each reward less the mean of the other samples of its picture: (B · samples,) → the same, float32."""
    rows = rewards.reshape(-1, samples)
    others = (rows.sum(axis=1, keepdims=True) - rows) / (samples - 1)
    return np.asarray((rows - others).reshape(-1), dtype=np.float32)


def _log_likelihood(captioner: Captioner, seen: Tensor, prompts: Sequence[Ids], told: Sequence[Ids]) -> Tensor:
    """Mean log-probability of a caption's tokens and its end, of each of the (B · samples,) captions."""
    owner = [i // _SAMPLES for i in range(len(told))]
    logits, ids, real = teacher_forced(captioner, seen[owner], [prompts[i] for i in owner], told)
    losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")  # (B, L)
    # By the batch's mean length and not each row's own: a mean over its own tokens would reward babble.
    return -(losses * real).sum(dim=1) / real.sum(dim=1).float().mean()
