"""How well the decoder does on the dev split after each epoch: greedy captions, with evidence and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from revln.models.base import CaptionOptions
from revln.models.decoding import Row
from revln.models.revln.decoder import Captioner
from revln.models.revln.net import RevlnNet
from revln.training.captions import Prompter, caption_loss, target
from revln.training.metrics import score_captions
from revln.training.pixels import batches_of, whole

__all__ = ["DevCaptions"]

# Of the dev split's pictures: enough to choose an epoch by, and seconds an epoch.
_MOST = 500
_GREEDY = CaptionOptions(num_beams=1)


@dataclass(frozen=True, slots=True)
class DevCaptions:
    """The dev pictures' feature maps, which no stage of the decoder changes, and what is asked of it."""

    places: Tensor  # (N, P, C) float16
    vectors: Tensor  # (N, D)
    references: Sequence[Sequence[str]]
    evidence: Sequence[Sequence[str]]
    prompter: Prompter
    device: torch.device

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        net: RevlnNet,
        images: npt.NDArray[np.uint8],
        references: Sequence[Sequence[str]],
        evidence: Sequence[Sequence[str]],
        prompter: Prompter,
        device: torch.device,
    ) -> DevCaptions:
        """``evidence`` is best first; as many are shown as the served model shows."""
        net.eval()
        n = min(_MOST, len(images))
        maps = [net.image.places(whole(images[at], device)) for at in batches_of(n)]
        vectors = torch.cat([net.image.embed(places).cpu() for places in maps])
        maps = [places.half().cpu() for places in maps]
        shown = [row[: prompter.most] for row in evidence[:n]]
        return cls(torch.cat(maps), vectors, references[:n], shown, prompter, device)

    @torch.inference_mode()
    def figures(self, captioner: Captioner) -> dict[str, float]:
        """dev_loss of each first caption; BLEU-4 and CIDEr of greedy captions; CIDEr of those without evidence."""
        tokenizer, each = self.prompter.tokenizer, self.prompter.each
        losses, told, bare = [], [], []
        for at in batches_of(len(self.places)):
            seen = captioner.look(self.places[at].float().to(self.device), self.vectors[at].to(self.device))
            prompts = [tokenizer.prompt([(None, text) for text in shown], each) for shown in self.evidence[at]]
            targets = [target(tokenizer, texts[0]) for texts in self.references[at]]
            losses.append(float(caption_loss(captioner, seen, prompts, targets)))
            told += _tell(captioner, seen, prompts)
            bare += _tell(captioner, seen, [tokenizer.prompt((), each)] * len(prompts))
        with_evidence, without = (
            score_captions([tokenizer.decode(row) for row in rows], self.references) for rows in (told, bare)
        )
        return {
            "dev_loss": sum(losses) / len(losses),
            "bleu4": with_evidence["bleu4"],
            "cider": with_evidence["cider"],
            "cider_bare": without["cider"],
        }


def _tell(captioner: Captioner, seen: Tensor, prompts: Sequence[list[int]]) -> list[tuple[int, ...]]:
    return [best.ids for best, *_ in captioner.generate(seen, [Row(prompt) for prompt in prompts], _GREEDY)]
