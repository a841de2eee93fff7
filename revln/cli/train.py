"""`revln train`: make a model of the revln family from captioned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from revln.cli.evaluate import device_of, model_folder
from revln.cli.numbers import Number
from revln.errors import RevlnError, ValidationFailed

__all__ = ["train"]

_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(min=0)
_SOME = click.IntRange(min=1)
_WEIGHT = Number(min=0)
_MOST_WEIGHT = 100  # a pass is drawn as a list of its pictures
_POSITIVE = Number(min=0, min_open=True)


@click.command()
@click.option(
    "--data",
    type=_FILE,
    multiple=True,
    help="captions: JSONL, Flickr token file, Karpathy or COCO JSON; several times for several; the first one's dev "
    "split is measured on",
)
@click.option(
    "--images",
    type=_FILE,
    multiple=True,
    help="folder or zip of pictures, for all --data or one for each in their order [default: images.zip beside each]",
)
@click.option("--data-dev", type=_FILE, help="captions of the dev split, where they are in a file of their own")
@click.option(
    "--labels",
    type=_FILE,
    multiple=True,
    help="label file: a line of JSON a picture, with file, source, split, and labels or captions",
)
@click.option("--label-images", type=_FILE, multiple=True, help="as --images, for --labels")
@click.option(
    "--weight",
    "weights",
    metavar="SOURCE=W",
    multiple=True,
    help="how often a pass sees the pictures of a source: a label file's, or a caption file's folder [default: once]",
)
@click.option(
    "--held-out",
    metavar="N",
    type=_SOME,
    help="measure on every Nth captioned picture of the label files, by its name's hash, and do not train on it",
)
@click.option("--out", type=_FILE, required=True, help="checkpoint folder; a run that was cut goes on from there")
@click.option("--split-train", default="train", show_default=True)
@click.option("--split-dev", default="dev", show_default=True)
@click.option("--backbone", type=_FILE, help="published ImageNet state dict of the trunk; without one, random weights")
@click.option(
    "--init",
    metavar="NAME|DIR",
    help="a trained model to go on from, in place of --backbone: its sizes, words, weights",
)
@click.option(
    "--teacher",
    "teachers",
    metavar="NAME|DIR",
    multiple=True,
    help="a sentence encoder, whose space is learned, or a model that embeds pictures too, whose similarities are; "
    "several: their mean",
)
@click.option(
    "--teaching",
    type=Number(0, 1),
    default=0.75,
    show_default=True,
    help="the teachers' share of the joint space's loss",
)
@click.option(
    "--classes",
    type=_FILE,
    help="names of the classes that the backbone's own classifier tells, a line each: soft labels under a teacher that "
    "only reads",
)
@click.option("--extra-captions", type=_FILE, help="captions without pictures (.tsv or .tsv.gz), for the language")
@click.option("--cache", type=_FILE, help="where the decoded pictures are kept [default: OUT/state]")
@click.option("--config", type=_FILE, help="JSON of the networks' sizes [default: those of revln-tiny]")
@click.option("--license", help="terms, as GET /v1/models will show them; default: those of --init or --config")
@click.option("--seed", type=_COUNT, default=0, show_default=True)
@click.option(
    "--text-epochs",
    type=_COUNT,
    help="passes of the text encoder over extra captions [default: 6], or over all sentences under a teacher that only "
    "reads [default: 2]",
)
@click.option(
    "--language-epochs", type=_COUNT, default=2, show_default=True, help="passes of the decoder over sentences alone"
)
@click.option("--epochs", "joint_epochs", type=_COUNT, default=14, show_default=True, help="passes of the joint space")
@click.option(
    "--caption-epochs", type=_COUNT, default=10, show_default=True, help="passes of the decoder over the pictures"
)
@click.option(
    "--patience", type=_SOME, default=5, show_default=True, help="epochs without a better dev figure that end a stage"
)
@click.option(
    "--learning-rate", type=_POSITIVE, default=1.0, show_default=True, help="factor on the stages' learning rates"
)
@click.option(
    "--batch",
    type=click.IntRange(min=2),  # one has no negatives
    default=128,
    show_default=True,
    help="pictures in a step of the joint space",
)
@click.option(
    "--train-size",
    type=click.IntRange(min=32),  # the trunk halves five times
    default=160,
    show_default=True,
    help="pixels of a view in the joint space's training",
)
@click.option(
    "--least-area",
    type=Number(0, 1, min_open=True),
    default=0.6,
    show_default=True,
    help="share of a picture that a view in the joint space's training holds at least",
)
@click.option(
    "--colour",
    type=Number(0, 1),
    default=0.2,
    show_default=True,
    help="how far such a view's brightness, contrast and saturation may be from the picture's",
)
@click.option(
    "--word-dropout",
    type=Number(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="share of a caption's tokens that the joint space's training leaves out",
)
@click.option(
    "--freeze",
    type=click.IntRange(0, 23),
    default=0,
    show_default=True,
    help="trunk blocks that stay as they are, from the bottom; all: 19 of MobileNetV2, 23 of EfficientNet-Lite2",
)
@click.option(
    "--views",
    type=_SOME,
    metavar="V",
    help="compute once, into --cache, what the --freeze blocks make of V views of each picture and of the whole one; "
    "all stages start from there",
)
@click.option("--hardest", type=_WEIGHT, default=0.0, show_default=True, help="weight of the hardest-negative hinge")
@click.option(
    "--captioning", type=_WEIGHT, default=0.5, show_default=True, help="weight of captioning in the joint space's loss"
)
@click.option("--threads", type=_COUNT, default=0, help="CPU threads [default: torch's choice]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1; auto: a GPU if there is one")
@click.option(
    "--bf16/--fp32",
    default=False,
    help="bfloat16 matrix products: faster where the CPU or GPU has them, far slower elsewhere",
)
@click.option(
    "--save-every-s", type=_WEIGHT, default=300.0, show_default=True, help="seconds of work that a kill may cost"
)
@click.option("--time-limit-s", type=_POSITIVE, help="begin no step after so many seconds; what is there is written")
def train(init: str | None, teachers: tuple[str, ...], weights: tuple[str, ...], **options: Any) -> None:
    """Train a model; OUT is then usable as one."""
    try:
        from revln.training.options import TrainOptions
        from revln.training.run import train as run

        options["device"] = device_of(options["device"])
        start = None if init is None else model_folder(init)
        taught = tuple(map(model_folder, teachers))
        run(TrainOptions(init=start, teachers=taught, weights=tuple(map(_weight, weights)), **options))
    except RevlnError as err:
        raise click.ClickException(err.message) from err


def _weight(value: str) -> tuple[str, float]:
    source, _, weight = value.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not source or not 0 < number <= _MOST_WEIGHT:
        raise ValidationFailed(f"--weight {value} is no SOURCE=W with W above 0 and up to {_MOST_WEIGHT}: coco=2, say")
    return source, number
