"""The last stage: captions that the decoder samples itself, rewarded by CIDEr.

Rennie et al., Self-Critical Sequence Training, CVPR 2017 (arXiv:1612.00563); the baseline of a sample is the mean
reward of the picture's other samples (Luo, A Better Variant of Self-Critical Sequence Training, arXiv:2003.09971).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revln.models.base import CaptionOptions
from revln.models.captioner import Captioner
from revln.models.decoding import Row, pad_left
from revln.models.revln_family import RevlnNet
from revln.models.tokenizer import EOS, PAD
from revln.training.captions import CaptionData, Prompter
from revln.training.metrics import Cider, tokenize
from revln.training.pixels import Augment, View
from revln.training.stage import Stage, rng_of

__all__ = ["advantages", "self_critical_stage"]

Ids = list[int]
_Batch = tuple[View, list[int], list[Ids], list[int]]  # pictures, prompts, seeds
_SELF_CRITICAL = 5  # in the keys of random generators
_SAMPLES = 5
# From the whole distribution: of a cut one, the gradient would be another.
_SAMPLING = CaptionOptions(num_beams=1, num_captions=_SAMPLES, temperature=1.0, top_p=1.0)


def self_critical_stage(
    net: RevlnNet,
    data: CaptionData,
    prompter: Prompter,
    augment: Augment,
    *,
    epochs: int,
    batch: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
    device: torch.device,
) -> Stage:
    """One prompt a picture and pass, `_SAMPLES` captions of it; the words' weights are those of the training split."""
    captioner, tokenizer = net.captioner, prompter.tokenizer
    references = [[tokenize(text) for text in texts] for texts in data.captions]
    cider = Cider(references)

    def draw(epoch: int, step: int) -> _Batch:
        order = rng_of(seed, _SELF_CRITICAL, epoch).permutation(len(references))
        pictures = order[step * batch : (step + 1) * batch]
        rng = rng_of(seed, _SELF_CRITICAL, epoch, step)
        view = augment.draw(rng, data.images[pictures], data.mirror[pictures])
        prompts = [prompter(rng, data.evidence[i], data.pool) for i in pictures]
        return view, pictures.tolist(), prompts, rng.integers(2**62, size=len(pictures)).tolist()

    def loss(item: _Batch) -> Tensor:
        view, pictures, prompts, seeds = item
        with torch.no_grad():
            with torch.autocast(device.type, enabled=device.type != "cpu", dtype=torch.bfloat16):
                places = net.image.places(augment(view, device))
            captioner.eval()  # samples of the decoder that is served, without dropout
            rows = [Row(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
            several = captioner.generate(captioner.look(places), rows, _SAMPLING)
            told = [list(one.ids) for samples in several for one in samples]
        rewards = [
            cider.of(tokenize(tokenizer.decode(row)), references[pictures[i // _SAMPLES]]) for i, row in enumerate(told)
        ]
        advantage = advantages(np.array(rewards), _SAMPLES)
        likely = _log_likelihood(captioner, captioner.look(places), prompts, told)
        return -(torch.from_numpy(advantage).to(likely) * likely).mean()

    parameters = [{"params": list(captioner.parameters()), "lr": 5e-5}]
    modules: dict[str, nn.Module] = {"captioner": captioner}
    steps = max(1, len(references) // batch)
    return Stage("self-critical", epochs, steps, parameters, modules, draw, loss, validate, best_by="cider")


def advantages(rewards: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float32]:
    """Each reward less the mean of the other samples of its picture: (B · samples,) → the same, float32."""
    rows = rewards.reshape(-1, samples)
    others = (rows.sum(axis=1, keepdims=True) - rows) / (samples - 1)
    return np.asarray((rows - others).reshape(-1), dtype=np.float32)


def _log_likelihood(captioner: Captioner, seen: Tensor, prompts: Sequence[Ids], told: Sequence[Ids]) -> Tensor:
    """Mean log-probability of a caption's tokens and its end, of each of the (B · samples,) captions."""
    owner = [i // _SAMPLES for i in range(len(told))]
    ids, mask = pad_left([[*prompts[i], *row, EOS] for i, row in zip(owner, told, strict=True)], PAD)
    ids, mask = ids.to(seen.device), mask.to(seen.device)
    lengths = torch.tensor([len(row) + 1 for row in told], device=seen.device)
    L = int(lengths.max())
    logits = captioner.logits(ids[:, :-1], mask[:, :-1], seen[owner], keep=L)  # (B, L, V)
    real = torch.arange(L, device=seen.device)[None, :] >= L - lengths[:, None]  # (B, L)
    losses = F.cross_entropy(logits.float().transpose(1, 2), ids[:, -L:], reduction="none")  # (B, L)
    # By the batch's mean length and not each row's own: a mean over its own tokens would reward babble.
    return -(losses * real).sum(dim=1) / lengths.float().mean()
