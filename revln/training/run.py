"""The whole training: tokenizer, joint space, decoder, checkpoint. Cut anywhere, the same command goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from revln.errors import ValidationFailed
from revln.models.memory import keep_freed_memory
from revln.models.registry import describe_folder, load_folder
from revln.models.revln.card import TOKENIZER_FILE, WEIGHTS_FILE, RevlnConfig
from revln.models.revln.model import load
from revln.models.revln.net import RevlnNet
from revln.models.revln.tokenizer import Tokenizer, train_tokenizer
from revln.models.revln.trunks import fold_backbone
from revln.training.calibrate import evidence_threshold, match_thresholds
from revln.training.captions import CaptionData, DecoderTraining, Prompter, Retrieved, caption_stage, language_stage
from revln.training.contrast import dev_recall, embed_images, embed_texts
from revln.training.curves import Curves
from revln.training.data import Pictures, read_captions, read_extra_captions
from revln.training.dev import DevCaptions
from revln.training.evidence import fit, honest_pool, nearest_captions
from revln.training.export import export
from revln.training.joint import JointData, JointOptions, Told, joint_stage, text_stage
from revln.training.options import TrainOptions
from revln.training.pixels import Augment, cache_pixels, may_be_mirrored
from revln.training.stage import Schedule, run_stage
from revln.training.teacher import Teacher, check_teacher, teacher_of

__all__ = ["train"]

log = logging.getLogger(__name__)

# Captions longer than this are rare and slow every batch that holds one.
_TRAIN_TOKENS = 32
# Retrieved captions that are kept for each picture; see `honest_pool`.
_KEPT_EVIDENCE = 32
# The decoder's views hide little: what a caption tells of must be there.
_CAPTION_LEAST = 0.8


def train(options: TrainOptions) -> None:
    """Run what is still to be run, and write the checkpoint folder after the joint space and at the end.

    Raises:
        ValidationFailed: a file of the data is missing or malformed, or two options contradict each other.
        ModelUnavailable: the model to go on from cannot be read.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(options.seed)
    _Training(options).run()


@dataclass(frozen=True, slots=True)
class _Space:
    """Where the trained encoders put the pictures of both splits, and the captions of the training's: float32."""

    images: npt.NDArray[np.float32]
    dev: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]


class _Training:
    """The state that the stages share."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        if options.init and (options.backbone or options.config):
            raise ValidationFailed("--init brings its own backbone and sizes; leave out --backbone and --config")
        self.train = read_captions(options.data, options.split_train)
        self.dev = read_captions(options.data_dev or options.data, options.split_dev)
        if options.data_dev is None and self.dev[0].split is None:
            raise ValidationFailed(f"{options.data} knows no splits; name the captions of the dev split by --data-dev")
        self.extra = read_extra_captions(options.extra_captions) if options.extra_captions else []
        options.out.mkdir(parents=True, exist_ok=True)
        self.state = options.out / "state"
        self.state.mkdir(exist_ok=True)
        self.device = torch.device(options.device)
        if options.init:
            start = load("init", options.init, "cpu")
            self.config, self.net, self.tokenizer = start.config, start.net.requires_grad_(True), start.tokenizer
        else:
            self.tokenizer = self._tokenizer()
            self.config = replace(_config(options), vocab_size=self.tokenizer.size)
            self.net = RevlnNet(self.config)
        if options.license is not None:
            self.config = replace(self.config, license=options.license)
        if options.backbone:
            _load_backbone(self.net, self.config.trunk, options)
        self.pictures = Pictures(options.images)
        for folder in options.teachers:
            check_teacher(describe_folder(folder))
        self.net.to(self.device)
        self.net.image.to(memory_format=torch.channels_last)
        deadline = time.monotonic() + (options.time_limit_s or math.inf)
        self.schedule = Schedule(
            options.seed,
            self.device,
            options.bf16,
            self.state,
            options.save_every_s,
            options.patience,
            deadline,
            options.learning_rate,
            partial(_hangs_on, options),
        )
        self.curves = Curves(options.out)
        self.prompter = Prompter(self.tokenizer, self.config.max_evidence, self.config.evidence_tokens)

    def run(self) -> None:
        self._language()
        folder = self.options.cache or self.state
        self.images, self.dev_images = (
            cache_pixels([example.file for example in part], self.pictures, self.config.image_size, folder)
            for part in (self.train, self.dev)
        )
        self.mirror = np.array([may_be_mirrored(example.captions) for example in self.train])
        self._joint()
        space = self._space()
        self._calibrate(space)
        self._export()
        self._captions(space)
        self._export()
        self.curves.draw()

    def _language(self) -> None:
        """What captions without pictures teach: the GRUs and the decoder. A trained model knows it."""
        options = self.options
        if not self.extra or options.init:
            return
        if pairs := [self._ids(group) for group in self.extra if len(group) > 1]:
            # Four times the batch: a text costs a tenth of a picture, and negatives are what the stage lives on.
            stage = text_stage(self.net.text, pairs, options.text_epochs, 4 * options.batch, options.seed, self.device)
            run_stage(stage, self.schedule, self.curves)
        else:
            log.warning("no stage text: no picture of %s has two captions", options.extra_captions)
        stage = language_stage(
            self.net.captioner, self.extra, self.prompter, options.language_epochs, options.batch, options.seed
        )
        run_stage(stage, self.schedule, self.curves)

    def _joint(self) -> None:
        options, net = self.options, self.net
        dev_ids, owner = _flat([self._ids(example.captions) for example in self.dev])

        def validate() -> dict[str, float]:
            images = embed_images(net.image, self.dev_images, self.config.mirror, self.device)
            return dev_recall(images, embed_texts(net.text, dev_ids, self.device), owner)

        data = JointData(
            self.images,
            self.mirror,
            [self._told(example.captions) for example in self.train],
            [self._told(group) for group in self.extra],
            self.tokenizer,
            self.tokenizer.prompt((), self.config.evidence_tokens),
        )
        stage = joint_stage(
            net,
            data,
            Augment(options.train_size, options.least_area, options.colour),
            JointOptions(
                epochs=options.joint_epochs,
                batch=options.batch,
                seed=options.seed,
                hardest=options.hardest,
                captioning=options.captioning,
                word_dropout=options.word_dropout,
                teaching=options.teaching,
                freeze=options.freeze,
            ),
            validate,
            self.device,
            cache(self._teachers),  # loaded when the first step asks
        )
        run_stage(stage, self.schedule, self.curves)

    def _teachers(self) -> Sequence[Teacher]:
        models = [load_folder(folder, str(self.device), "auto") for folder in self.options.teachers]
        return [teacher_of(model, self.dev, self.pictures) for model in models]

    def _captions(self, space: _Space) -> None:
        options = self.options
        if not options.caption_epochs:
            return
        data, dev = self._evidence(space)
        training = DecoderTraining(
            self.net,
            data,
            self.prompter,
            Augment(self.config.image_size, _CAPTION_LEAST),
            batch=max(1, options.batch // 2),
            seed=options.seed,
            validate=lambda: dev.figures(self.net.captioner),
            device=self.device,
        )
        run_stage(caption_stage(training, options.caption_epochs), self.schedule, self.curves)

    def _evidence(self, space: _Space) -> tuple[CaptionData, DevCaptions]:
        """The captions of the other pictures are one store; with those without pictures they are another.

        A user's collection is of the style of its pictures, and may be small; so is the first store. The second, ten
        times as large, has more that fits. Dev is asked with the first.
        """
        captions, told = ([example.captions for example in part] for part in (self.train, self.dev))
        texts, owner = _flat([list(group) for group in captions])
        stores = [self._retrieved(space, texts, space.texts, owner)]
        if self.options.extra_evidence and self.extra:
            more = [text for group in self.extra for text in group]
            vectors = np.concatenate([space.texts, embed_texts(self.net.text, self._ids(more), self.device)])
            stores.append(self._retrieved(space, texts + more, vectors, owner + [-1] * len(more)))
        data = CaptionData(self.images, self.mirror, captions, [store for store, _ in stores])
        shown = stores[0][1]
        return data, DevCaptions.of(self.net, self.dev_images, told, shown, self.prompter, self.device)

    def _retrieved(
        self, space: _Space, texts: list[str], vectors: npt.NDArray[np.float32], owner: list[int]
    ) -> tuple[Retrieved, list[list[str]]]:
        """From one store: for the training's pictures, and for dev's."""
        shown, shown_dev = (
            [[texts[j] for j in row] for row in nearest_captions(part, vectors, of, _KEPT_EVIDENCE)]
            for part, of in ((space.images, owner), (space.dev, None))
        )
        most = self.prompter.most
        wanted = fit([example.captions for example in self.dev], [row[:most] for row in shown_dev])
        pool = honest_pool([example.captions for example in self.train], shown, wanted, most)
        return Retrieved(shown, pool), shown_dev

    def _space(self) -> _Space:
        net, device, mirror = self.net, self.device, self.config.mirror
        images, dev = (embed_images(net.image, part, mirror, device) for part in (self.images, self.dev_images))
        texts, _ = _flat([self._ids(example.captions) for example in self.train])
        return _Space(images, dev, embed_texts(net.text, texts, device))

    def _calibrate(self, space: _Space) -> None:
        """On the dev split: what the served model says of a match, and of evidence that is too far."""
        ids, owner = _flat([self._ids(example.captions) for example in self.dev])
        texts = embed_texts(self.net.text, ids, self.device)
        self.config = replace(
            self.config,
            match_min_score=match_thresholds(space.dev, texts, owner),
            evidence_min_score=evidence_threshold(space.dev, space.texts),
        )

    def _tokenizer(self) -> Tokenizer:
        path = self.options.out / TOKENIZER_FILE
        if not path.is_file():
            texts = [text for example in self.train for text in example.captions]
            texts += [text for group in self.extra for text in group]
            train_tokenizer(texts, _config(self.options).vocab_size).write(path)
        return Tokenizer.read(path)

    def _told(self, captions: Sequence[str]) -> list[Told]:
        return [Told(text, ids) for text, ids in zip(captions, self._ids(captions), strict=True)]

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text)[:_TRAIN_TOKENS] for text in captions]

    def _export(self) -> None:
        export(self.options.out, self.config, self.net, self.tokenizer, self.options)


# What the state of a stage hangs on beside its epochs: of files, what is in them. The stages before it see to theirs.
_EVERY = ("data", "split_train", "extra_captions", "config", "seed", "learning_rate", "batch", "bf16")
_OWN = {
    "joint": (
        "init", "backbone", "data_dev", "split_dev", "teachers", "teaching", "train_size", "least_area", "colour",
        "word_dropout", "freeze", "hardest", "captioning",
    ),
    "caption": ("extra_evidence",),
}  # fmt: skip


def _hangs_on(options: TrainOptions, stage: str) -> dict[str, str]:
    """By the names on the command line."""
    names = (*_EVERY, *_OWN.get(stage, ()))
    return {"--" + name.replace("teachers", "teacher").replace("_", "-"): _value(options, name) for name in names}


def _value(options: TrainOptions, name: str) -> str:
    value = getattr(options, name)
    if name == "init" and value is not None:
        value = value / WEIGHTS_FILE
    if isinstance(value, Path):
        return _digest(value)
    if isinstance(value, tuple):
        value = ", ".join(map(str, value)) or None
    return "not given" if value is None else str(value)


def _digest(path: Path) -> str:
    """A file by what is in it; its name may change."""
    try:
        with path.open("rb") as file:
            return f"of sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except OSError as err:
        raise ValidationFailed(f"{path} cannot be read: {err.strerror}") from err


def _load_backbone(net: RevlnNet, trunk: str, options: TrainOptions) -> None:
    assert options.backbone is not None
    try:
        fold_backbone(trunk, net.image.trunk, _state(options.backbone))
    except (OSError, ValueError) as err:
        raise ValidationFailed(f"the backbone {options.backbone} cannot be used: {err}") from err


def _state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict: safetensors, or what torch.save wrote, of which nothing but tensors is unpacked."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return cast("dict[str, torch.Tensor]", torch.load(path, map_location="cpu", weights_only=True))


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
