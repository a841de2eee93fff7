"""`revln train`: make a model of the revln family from captioned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from revln.errors import RevlnError

__all__ = ["train"]

_DATA = Path("../shared/data")
_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--data", type=_FILE, default=_DATA / "flickr8k/captions.jsonl", show_default=True, help="captions.jsonl")
@click.option(
    "--images", type=_FILE, default=_DATA / "flickr8k/images.zip", show_default=True, help="folder or zip of pictures"
)
@click.option("--out", type=_FILE, required=True, help="checkpoint folder; a run that was cut goes on from there")
@click.option("--split-train", default="train", show_default=True)
@click.option("--split-dev", default="dev", show_default=True)
@click.option("--backbone", type=_FILE, help="MobileNetV2 state dict (.safetensors); without one, random weights")
@click.option("--extra-captions", type=_FILE, help="captions without pictures (.tsv or .tsv.gz), for the language")
@click.option("--cache", type=_FILE, help="where the frozen trunk's features are kept [default: OUT/state]")
@click.option("--config", type=_FILE, help="JSON of the networks' sizes [default: those of revln-tiny]")
@click.option("--license", default="not stated by whoever trained it", help="terms, as GET /v1/models will show them")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", "joint_epochs", default=10, show_default=True, help="passes of the joint space")
@click.option("--text-epochs", default=2, show_default=True, help="passes of the text encoder over extra captions")
@click.option("--language-epochs", default=1, show_default=True, help="passes of the decoder over extra captions")
@click.option("--caption-epochs", default=13, show_default=True, help="passes of the decoder over the pictures")
@click.option("--batch", default=128, show_default=True, help="pictures in a step of the joint space")
@click.option("--cut", default=14, show_default=True, help="trunk blocks that stay frozen; 19: all")
@click.option("--views", default=4, show_default=True, help="cached views: picture, mirror image, random crops")
@click.option("--hardest", default=0.0, show_default=True, help="weight of the hardest-negative hinge")
@click.option("--threads", default=0, help="CPU threads [default: torch's choice]")
@click.option("--bf16/--fp32", default=False, help="bfloat16 matrix products; faster where the CPU has them")
@click.option("--time-limit-s", type=float, help="begin no epoch after so many seconds; what is there is written")
def train(**options: Any) -> None:
    """Train a model; OUT is then usable as one."""
    try:
        from revln.training.options import TrainOptions
        from revln.training.run import train as run

        run(TrainOptions(**options))
    except RevlnError as err:
        raise click.ClickException(err.message) from err
