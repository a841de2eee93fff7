"""From the trained joint space to captions: what its cosines mean, what the decoder learns from, its confidence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from revln.training.calibrate import evidence_levels, evidence_threshold, match_thresholds
from revln.training.captions import DecoderTraining, caption_stage, fitted_noise, language_stage
from revln.training.dev import DevCaptions
from revln.training.evidence import Prompter, Store
from revln.training.examples import DecoderData
from revln.training.pixels import Augment, batches_of, whole
from revln.training.setting import Setting, Vectors
from revln.training.space import flat

__all__ = ["calibrate", "space_of", "train_decoder"]

log = logging.getLogger(__name__)

# A picture and a stranger.
_LEAST_DEV = 2
# The decoder's views hide little: what a caption tells of must be there.
_CAPTION_LEAST = 0.8
# A sentence whose picture is there is told so often beside those of no picture, which are many more.
_CAPTIONED = 2.0


@dataclass(frozen=True, slots=True)
class _Space:
    """Where the trained encoders put dev's pictures and captions, and the sentences that are trained on."""

    dev: Vectors
    dev_texts: Vectors
    owner: Sequence[int]  # the picture of each of ``dev_texts``
    store: Store

    @property
    def own(self) -> Vectors:
        """Cosines of dev's captions and their pictures."""
        cosines: Vectors = (self.dev[list(self.owner)] * self.dev_texts).sum(axis=1)
        return cosines


def space_of(setting: Setting) -> _Space:
    """Embed dev's pictures, and every caption. The decoder's stages leave the encoders as they are."""
    told, owner = flat([photo.captions for photo in setting.corpus.dev])
    texts = list(dict.fromkeys(text for group in setting.corpus.told for text in group))
    store = Store(texts, setting.embed_texts(texts))
    return _Space(setting.embedded(setting.dev_pixels), setting.embed_texts(told), owner, store)


def calibrate(setting: Setting, space: _Space) -> None:
    """On the dev split: what the served model says of a match, and of evidence, how near it is or too far."""
    if len(space.dev) >= _LEAST_DEV and space.store.texts:
        setting.config = replace(
            setting.config,
            match_min_score=match_thresholds(space.dev, space.dev_texts, space.owner),
            evidence_min_score=evidence_threshold(space.dev, space.store.vectors),
            evidence_levels=evidence_levels(space.own),
        )


def train_decoder(setting: Setting, space: _Space) -> None:
    """Run the decoder's stages, and measure its confidence. Without captioned pictures it stays as it is."""
    options, corpus, net = setting.options, setting.corpus, setting.net
    if not corpus.captioned or not options.caption_epochs:
        return
    if len(corpus.dev) < _LEAST_DEV:
        log.warning("the decoder stays as it is: no captions to measure it on; give --data-dev or --held-out")
        return
    maps = (net.image.places(whole(setting.dev_pixels[at], setting.device)) for at in batches_of(len(space.dev)))
    references = [photo.captions for photo in corpus.dev]
    dev = DevCaptions.of(net, setting.config, setting.tokenizer, maps, references, space.store)
    config = setting.config
    prompter = Prompter(setting.tokenizer, config.max_evidence, config.evidence_tokens, config.evidence_levels or ())
    data, batch = _data(setting, space), max(1, options.batch // 2)
    training = DecoderTraining(net, data, prompter, batch, options.seed, dev.figures, setting.device)
    # A trained decoder knows the language.
    if net.captioner.vector_tokens and not options.init:
        setting.run(language_stage(training, options.language_epochs))
    setting.run(caption_stage(training, options.caption_epochs))
    setting.config = replace(setting.config, caption_confidence=dev.confidence())


def _data(setting: Setting, space: _Space) -> DecoderData:
    corpus, number = setting.corpus, space.store.number
    groups = [[number[text] for text in dict.fromkeys(group)] for group in corpus.told]
    captioned = groups[len(corpus.extra) :]
    noise, centre = fitted_noise(space.store, groups, float(space.own.mean()))
    pictures = setting.views(Augment(setting.config.image_size)).vectors(setting.config.mirror)
    if setting.net.captioner.vector_tokens:
        setting.net.captioner.centre.copy_(torch.from_numpy(pictures[: len(captioned)].mean(axis=0)))
    return DecoderData(
        store=space.store,
        groups=groups,
        group_weights=[1.0] * len(corpus.extra) + [_CAPTIONED] * len(captioned),
        captioned=captioned,
        labelled=[photo.labels for photo in corpus.labelled],
        weights=corpus.weight(corpus.photos).tolist(),
        pictures=pictures,
        noise=noise,
        centre=torch.from_numpy(centre).to(setting.device),
        views=setting.views(Augment(setting.config.image_size, _CAPTION_LEAST)),
    )
