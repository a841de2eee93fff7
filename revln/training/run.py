"""The whole training: tokenizer, joint space, decoder, checkpoint. Cut anywhere, the same command goes on."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from revln.errors import ValidationFailed
from revln.models.image_cnn import load_backbone
from revln.models.revln_card import TOKENIZER_FILE, RevlnConfig
from revln.models.revln_family import RevlnNet
from revln.models.tokenizer import Tokenizer, train_tokenizer
from revln.training.captions import Prompter, caption_loss, caption_stage, language_stage, nearest_captions, target
from revln.training.curves import Curves
from revln.training.data import Example, Pictures, read_captions, read_extra_captions
from revln.training.export import export
from revln.training.features import cache_features, run_tail
from revln.training.joint import dev_recall, embed_features, embed_texts, joint_stage, text_stage
from revln.training.options import TrainOptions
from revln.training.stage import Schedule, run_stage

__all__ = ["train"]

Features = npt.NDArray[np.float16]
# Captions longer than this are rare and slow every batch that holds one.
_TRAIN_TOKENS = 32


def train(options: TrainOptions) -> None:
    """Run what is still to be run, and write the checkpoint folder after each of the two halves.

    Raises:
        ValidationFailed: a file of the data is missing or malformed.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    _Training(options).run()


class _Training:
    """The state that the stages share."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.train = read_captions(options.data, options.split_train)
        self.dev = read_captions(options.data, options.split_dev)
        self.extra = read_extra_captions(options.extra_captions) if options.extra_captions else []
        self.pictures = Pictures(options.images)
        options.out.mkdir(parents=True, exist_ok=True)
        self.state = options.out / "state"
        self.state.mkdir(exist_ok=True)
        self.tokenizer = self._tokenizer()
        self.config = replace(_config(options), vocab_size=self.tokenizer.size, license=options.license)
        self.net = RevlnNet(self.config)
        self.net.image.to(memory_format=torch.channels_last)
        if options.backbone:
            load_backbone(self.net.image, load_file(options.backbone))
        deadline = time.monotonic() + (options.time_limit_s or math.inf)
        self.schedule = Schedule(options.seed, options.bf16, self.state, deadline)
        self.curves = Curves(options.out)

    def run(self) -> None:
        # The frozen blocks first: they must be cached before the stages load a trained trunk behind them.
        train, dev = self._features(self.train, self.options.views), self._features(self.dev, 1)
        self._joint(train, dev)
        self._export()
        self._captions(train, dev)
        self._export()
        self.curves.draw()

    def _tokenizer(self) -> Tokenizer:
        path = self.options.out / TOKENIZER_FILE
        if not path.is_file():
            texts = [text for example in self.train for text in example.captions]
            texts += [text for group in self.extra for text in group]
            train_tokenizer(texts, _config(self.options).vocab_size).write(path)
        return Tokenizer.read(path)

    def _features(self, examples: list[Example], views: int) -> Features:
        return cache_features(
            self.net.image,
            [example.file for example in examples],
            self.pictures,
            size=self.config.image_size,
            cut=self.options.cut,
            views=views,
            cache=self.options.cache or self.state,
        )

    def _ids(self, captions: tuple[str, ...]) -> list[list[int]]:
        return [self.tokenizer.encode(text)[:_TRAIN_TOKENS] for text in captions]

    def _joint(self, train: Features, dev: Features) -> None:
        options, net = self.options, self.net
        if self.extra:
            groups = [self._ids(group) for group in self.extra]
            # Four times the batch: a text costs a tenth of a picture, and negatives are what the stage lives on.
            stage = text_stage(net.text, groups, options.text_epochs, 4 * options.batch, options.seed)
            run_stage(stage, self.schedule, self.curves)
        dev_ids, owner = _flat([self._ids(example.captions) for example in self.dev])

        def validate() -> dict[str, float]:
            images = embed_features(net.image, dev, options.cut)
            return dev_recall(images, embed_texts(net.text, dev_ids), owner)

        stage = joint_stage(
            net.image,
            net.text,
            train,
            [self._ids(example.captions) for example in self.train],
            cut=options.cut,
            epochs=options.joint_epochs,
            batch=options.batch,
            each=3,
            hardest=options.hardest,
            seed=options.seed,
            validate=validate,
        )
        run_stage(stage, self.schedule, self.curves)

    def _captions(self, train: Features, dev: Features) -> None:
        options, net, captioner = self.options, self.net, self.net.captioner
        prompter = Prompter(self.tokenizer, self.config.max_evidence, self.config.evidence_tokens)
        if self.extra:
            stage = language_stage(
                captioner, self.extra, prompter, options.language_epochs, options.batch, options.seed
            )
            run_stage(stage, self.schedule, self.curves)
        texts, owner = _flat([list(example.captions) for example in self.train])
        vectors = embed_texts(net.text, [self.tokenizer.encode(text)[:_TRAIN_TOKENS] for text in texts])
        near = nearest_captions(embed_features(net.image, train, options.cut), vectors, owner, 2 * prompter.most)
        near_dev = nearest_captions(embed_features(net.image, dev, options.cut), vectors, None, 2 * prompter.most)
        dev_places = run_tail(net.image, dev, options.cut, 1)

        def validate() -> dict[str, float]:
            return {"dev_loss": self._dev_loss(dev_places, [[texts[j] for j in row] for row in near_dev], prompter)}

        stage = caption_stage(
            captioner,
            # The picture and its mirror image: crops might hide what the caption tells of.
            run_tail(net.image, train, options.cut, min(2, options.views)),
            [example.captions for example in self.train],
            [[texts[j] for j in row] for row in near],
            prompter,
            epochs=options.caption_epochs,
            batch=max(1, options.batch // 2),
            seed=options.seed,
            validate=validate,
        )
        run_stage(stage, self.schedule, self.curves)

    @torch.inference_mode()
    def _dev_loss(self, places: Features, evidence: list[list[str]], prompter: Prompter) -> float:
        """Of the first caption of up to 256 dev pictures, with evidence drawn as in training but always alike."""
        rng, losses = np.random.default_rng(0), []
        for start in range(0, min(256, len(self.dev)), 64):
            rows = range(start, min(start + 64, len(self.dev)))
            seen = self.net.captioner.look(torch.from_numpy(places[rows, 0].astype(np.float32)))
            prompts = [prompter(rng, evidence[i]) for i in rows]
            targets = [target(self.tokenizer, self.dev[i].captions[0]) for i in rows]
            losses.append(float(caption_loss(self.net.captioner, seen, prompts, targets)))
        return sum(losses) / len(losses)

    def _export(self) -> None:
        export(self.options.out, self.config, self.net, self.tokenizer, self.options)


def _config(options: TrainOptions) -> RevlnConfig:
    if options.config is None:
        return RevlnConfig()
    try:
        return RevlnConfig(**json.loads(options.config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise ValidationFailed(f"{options.config} is not a JSON object of model settings: {err}") from err


_T = TypeVar("_T")


def _flat(groups: list[list[_T]]) -> tuple[list[_T], list[int]]:
    """Captions in one list, and the number of each one's picture."""
    return [x for group in groups for x in group], [i for i, group in enumerate(groups) for _ in group]
