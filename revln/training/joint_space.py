"""How the joint space is learned, by what there is to learn from: captions and names, teachers, a few new names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from revln.errors import ValidationFailed
from revln.models.base import Operation
from revln.models.registry import describe_folder, load_folder
from revln.training.classes import Classes, class_chances, read_classes
from revln.training.few import KEPT_VIEWS, few_stage, wise
from revln.training.image import Head, SpaceData, image_stage
from revln.training.imitate import imitate_stage
from revln.training.joint import JointData, JointOptions, Told, joint_stage, text_stage
from revln.training.labels import NAMED
from revln.training.names import Names
from revln.training.sentences import read_sentences
from revln.training.setting import Setting, Vectors
from revln.training.teacher import Seer, Teacher, check_teacher
from revln.training.views import Views, array_name, seen_vectors

__all__ = ["train_joint_space"]

log = logging.getLogger(__name__)

_TEXT_EPOCHS, _IMITATE_EPOCHS = 6, 2
_READ_AT_ONCE = 8192


def train_joint_space(setting: Setting) -> None:
    """Run the stages of the encoders.

    Raises:
        ValidationFailed: two options contradict each other, or a loss is no number any more.
    """
    options = setting.options
    readers, seers = _teachers(options.teachers)
    _check(setting, readers, seers)
    # Before a stage changes the trunk: the classifier is of the published one.
    classes = read_classes(options.classes, setting.backbone) if options.classes else None
    if options.init and not setting.corpus.captioned and not options.teachers:
        _by_a_few(setting)
        return
    if readers:
        _by_readers(setting, readers, classes)
    else:
        _by_pairs(setting)
    if seers or not readers:
        _by_captions(setting, seers)


def _teachers(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return those that only read, and those that see pictures, too."""
    infos = {folder: describe_folder(folder) for folder in folders}
    for info in infos.values():
        check_teacher(info)
    seers = [folder for folder, info in infos.items() if Operation.EMBED_IMAGE in info.operations]
    return [folder for folder in infos if folder not in seers], seers


def _check(setting: Setting, readers: Sequence[Path], seers: Sequence[Path]) -> None:
    options = setting.options
    if options.views is not None and not options.freeze:
        raise ValidationFailed("--views keeps the output of frozen blocks; say how many with --freeze")
    if options.views is not None and seers:
        raise ValidationFailed("--views keeps no pixels for a --teacher that embeds pictures; leave one out")
    if options.classes and not readers:
        raise ValidationFailed("--classes is told by a --teacher that only reads; name one, or leave it out")


def _by_pairs(setting: Setting) -> None:
    """What captions without pictures teach the GRUs. A trained model knows it."""
    options, extra = setting.options, setting.corpus.extra
    if not extra or options.init:
        return
    if pairs := [setting.ids(group) for group in extra if len(group) > 1]:
        epochs = _TEXT_EPOCHS if options.text_epochs is None else options.text_epochs
        # Four times the batch: a text costs a tenth of a picture, and negatives are what the stage lives on.
        setting.run(text_stage(setting.net.text, pairs, epochs, 4 * options.batch, options.seed, setting.device))
    else:
        log.warning("no stage text: no picture of %s has two captions", options.extra_captions)


def _by_captions(setting: Setting, seers: Sequence[Path]) -> None:
    options, corpus = setting.options, setting.corpus

    def told(texts: Sequence[str]) -> list[Told]:
        return [Told(text, ids) for text, ids in zip(texts, setting.ids(texts), strict=True)]

    @cache  # loaded when the first step asks
    def teachers() -> Sequence[Teacher]:
        models = [load_folder(folder, str(setting.device), "auto") for folder in seers]
        return [Seer(model, corpus.dev, corpus.pictures) for model in models]

    data = JointData(
        setting.views(setting.augment(options.train_size)),
        [told(photo.texts) for photo in corpus.photos],
        corpus.weight(corpus.photos).tolist(),
        [told(group) for group in corpus.extra],
        setting.tokenizer,
        setting.tokenizer.prompt((), setting.config.evidence_tokens),
    )
    joint = JointOptions(
        epochs=options.joint_epochs,
        batch=options.batch,
        seed=options.seed,
        hardest=options.hardest,
        captioning=options.captioning,
        word_dropout=options.word_dropout,
        teaching=options.teaching,
        freeze=options.freeze,
        best_by=setting.dev_space.best_by,
    )
    setting.run(joint_stage(setting.net, data, joint, setting.measure, setting.device, teachers))


def _by_readers(setting: Setting, readers: Sequence[Path], classes: Classes | None) -> None:
    """Under sentence encoders: first the pictures, then the texts learn where they are in the encoders' space."""
    options, net, device, best = setting.options, setting.net, setting.device, setting.dev_space.best_by
    views = setting.views(setting.augment(options.train_size))
    data = _space_data(setting, readers, classes, views)
    torch.manual_seed(options.seed)  # loading an encoder may draw numbers, and a run that goes on loads none
    head = Head(data.sentences.vectors.shape[1], setting.config.dim).to(device)

    @torch.inference_mode()
    def read(texts: Sequence[str]) -> Vectors:
        numbers = data.sentences.numbers(texts)
        parts = [numbers[start : start + _READ_AT_ONCE] for start in range(0, len(numbers), _READ_AT_ONCE)]
        return torch.cat([head(data.sentences.rows(part).to(device)).cpu() for part in parts]).numpy()

    def by_head() -> dict[str, float]:
        return setting.dev_space.figures(setting.watched_dev, setting.watched_labelled, read)

    epochs, batch, seed = options.joint_epochs, options.batch, options.seed
    setting.run(image_stage(net.image, head, data, options.freeze, epochs, batch, seed, by_head, best, device))
    net.eval()
    wanted, pictures = read(data.sentences.texts), views.vectors(setting.config.mirror)
    dev, labelled = cache(setting.watched_dev), cache(setting.watched_labelled)  # from here on they stay

    def by_text() -> dict[str, float]:
        return setting.dev_space.figures(dev, labelled, setting.embed_texts)

    def ids(numbers: Sequence[int]) -> list[list[int]]:
        return setting.ids([data.sentences.texts[j] for j in numbers])

    epochs = _IMITATE_EPOCHS if options.text_epochs is None else options.text_epochs
    setting.run(imitate_stage(net.text, data, ids, wanted, pictures, epochs, batch, seed, by_text, best, device))


def _space_data(setting: Setting, readers: Sequence[Path], classes: Classes | None, views: Views) -> SpaceData:
    corpus, of_class = setting.corpus, classes.names if classes else ()
    names = {name for several in (*corpus.names.values(), *of_class) for name in several}
    free = {text for group in corpus.told for text in group}
    free |= {one.format(name) for name in names for one in NAMED}
    dev = {text for photo in corpus.dev for text in photo.captions}
    sentences = read_sentences(readers, [*free, *dev], setting.cache, str(setting.device))
    told = [sentences.numbers([one.format(several[0]) for one in NAMED]) for several in of_class]
    return SpaceData(
        views,
        sentences,
        [sentences.numbers(photo.captions) for photo in corpus.captioned],
        corpus.weight(corpus.photos).tolist(),
        Names.of(corpus, sentences),
        np.array(sorted(sentences.numbers(list(free - dev))), dtype=np.int64),
        np.array(told, dtype=np.int64).reshape(-1, len(NAMED)),
        _chances(setting, classes, views),
    )


def _chances(setting: Setting, classes: Classes | None, views: Views) -> npt.NDArray[np.float16] | None:
    if classes is None:
        return None
    of = [str(len(setting.pixels)), array_name(setting.pixels), str(setting.options.freeze), str(setting.options.views)]
    return class_chances(classes, views.whole(), of, setting.cache)


def _by_a_few(setting: Setting) -> None:
    """New names for a trained model, by a few pictures of each."""
    options, text = setting.options, setting.net.text
    views = setting.fresh(setting.augment(setting.config.image_size))
    setting.net.eval()
    vectors = seen_vectors(views, KEPT_VIEWS, len(setting.pixels), setting.config.mirror)
    start = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    setting.run(
        few_stage(
            text,
            setting.tokenizer,
            setting.corpus.labelled,
            vectors,
            options.joint_epochs,
            options.seed,
            setting.measure,
            setting.dev_space.best_by,
            setting.device,
        )
    )
    wise(text, start)
