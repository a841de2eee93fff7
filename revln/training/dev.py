"""How well the decoder does on the dev split, told evidence of every quality; and what its confidence is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from revln.models.base import CaptionOptions, Evidence
from revln.models.revln.captioning import CONFIDENCE_FEATURES, PreparedCaption, candidates, caption
from revln.models.revln.card import RevlnConfig
from revln.models.revln.net import RevlnNet
from revln.models.revln.tokenizer import Tokenizer
from revln.training.calibrate import fitted_confidence
from revln.training.evidence import Store, nearest_captions
from revln.training.metrics import Cider, score_captions, tokenize
from revln.training.pixels import batches_of

__all__ = ["DevCaptions"]

# Of the dev split's pictures: enough to choose an epoch by, and seconds an epoch.
_MOST = 500
_GREEDY = CaptionOptions(num_beams=1)
_SERVED = CaptionOptions(num_beams=3)


@dataclass(frozen=True, slots=True)
class DevCaptions:
    """The dev pictures' feature maps, which no stage of the decoder changes, and what each is told.

    Attributes:
        evidence: of every picture, by its quality: ``bare`` nothing, ``store`` what was retrieved, ``told`` one of its
            own captions, ``misled`` a stranger's.
    """

    net: RevlnNet
    config: RevlnConfig
    tokenizer: Tokenizer
    places: Tensor  # (N, P, C) float16
    references: Sequence[Sequence[str]]
    evidence: Mapping[str, Sequence[Sequence[Evidence]]]

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        net: RevlnNet,
        config: RevlnConfig,
        tokenizer: Tokenizer,
        places: Iterator[Tensor],
        references: Sequence[Sequence[str]],
        store: Store,
    ) -> DevCaptions:
        """``places``: feature maps of all of dev, batch by batch; of many pictures some are taken, evenly."""
        some = np.unique(np.linspace(0, len(references) - 1, _MOST).astype(int)).tolist()
        maps = torch.cat([part.half().cpu() for part in places])[some]
        device = next(net.parameters()).device
        vectors = torch.cat([net.image.embed(maps[at].float().to(device)).cpu() for at in batches_of(len(maps))])
        told = [references[i] for i in some]
        found = nearest_captions(vectors.numpy(), store.vectors, config.max_evidence)
        evidence: dict[str, Sequence[Sequence[Evidence]]] = {
            "bare": [()] * len(told),
            "store": [
                [Evidence(str(j), store.texts[j], float(vector @ store.vectors[j])) for j in row]
                for row, vector in zip(found, vectors.numpy(), strict=True)
            ],
            "misled": [[_of_this_picture(told[i - 1][0])] for i in range(len(told))],
        }
        if all(len(texts) > 1 for texts in told):
            evidence["told"] = [[_of_this_picture(texts[0])] for texts in told]
        return cls(net, replace(config, caption_confidence=None), tokenizer, maps, told, evidence)

    @torch.inference_mode()
    def figures(self) -> dict[str, float]:
        """CIDEr of greedy captions: bare, from the store and told; ``dev`` is their mean. BLEU-4 is the store's."""
        scores = {}
        for quality in self.evidence:
            if quality != "misled":
                found = [
                    caption(self.net, self.config, self.tokenizer, places, batch)
                    for places, batch in self._batches(quality, _GREEDY)
                ]
                told = [self.tokenizer.decode(row[0][0]) for rows in found for row in rows]
                scores[quality] = score_captions(told, self._references(quality))
        return {
            "bleu4": scores["store"]["bleu4"],
            "cider": scores["store"]["cider"],
            **{f"cider_{quality}": score["cider"] for quality, score in scores.items() if quality != "store"},
            "dev": float(np.mean([score["cider"] for score in scores.values()])),
        }

    @torch.inference_mode()
    def confidence(self) -> list[float]:
        """Return the weights of `RevlnConfig.caption_confidence`, fitted on every candidate under every evidence."""
        # Any weights let retrieved captions compete; these rank nothing.
        config = replace(self.config, caption_confidence=[0.0] * (1 + len(CONFIDENCE_FEATURES)))
        features, scores = [], []
        for quality in self.evidence:
            references = [[tokenize(text) for text in texts] for texts in self._references(quality)]
            cider = Cider(references)
            found = [
                row
                for places, batch in self._batches(quality, _SERVED)
                for row in candidates(self.net, config, self.tokenizer, places, batch)
            ]
            for row, mine in zip(found, references, strict=True):
                for one in row:
                    features.append(one.features)
                    scores.append(cider.of(tokenize(self.tokenizer.decode(one.ids)), mine))
        return fitted_confidence(np.array(features), np.array(scores))

    def _references(self, quality: str) -> list[Sequence[str]]:
        return [texts[1:] if quality == "told" else texts for texts in self.references]

    def _batches(self, quality: str, options: CaptionOptions) -> Iterator[tuple[Tensor, list[PreparedCaption]]]:
        options = replace(
            options,
            no_repeat_ngram_size=self.config.caption_no_repeat_ngram_size,
            max_new_tokens=min(options.max_new_tokens, self.config.max_new_tokens),
        )
        device, none = next(self.net.parameters()).device, torch.empty(0)
        for at in batches_of(len(self.places)):
            evidence = self.evidence[quality][at]
            batch = [PreparedCaption(none, tuple(told), (), options, 0) for told in evidence]
            yield self.places[at].float().to(device), batch


def _of_this_picture(text: str) -> Evidence:
    """As a store gives it that holds the very picture with this text."""
    return Evidence("", text, 1.0)
