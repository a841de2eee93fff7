"""`revln eval`: Recall@K and caption scores of a model, as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from revln.errors import ModelUnavailable, RevlnError
from revln.models.registry import load_folder

__all__ = ["evaluate", "model_folder"]

_DATA = Path("../shared/data/flickr8k")
_FILE = click.Path(path_type=Path)


@click.command("eval")
@click.option("--model", default="revln-tiny", show_default=True, help="name of a shipped model, or a folder")
@click.option("--data", type=_FILE, default=_DATA / "captions.jsonl", show_default=True, help="captions.jsonl")
@click.option("--images", type=_FILE, default=_DATA / "images.zip", show_default=True, help="folder or zip of pictures")
@click.option("--split", default="dev", show_default=True)
@click.option("--store", type=_FILE, help="captions.jsonl to retrieve evidence from; without it, no retrieval")
@click.option("--retriever", help="model that finds the evidence, if not the evaluated one: a name or a folder")
@click.option("--store-split", default="train", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="only the first N pictures (recall is easier among fewer)")
@click.option("--captions/--no-captions", default=True, show_default=True, help="caption scores too")
@click.option("--num-beams", default=3, show_default=True)
@click.option("--examples", default=0, help="add N captions, evenly spaced over the split, to the report")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True)
@click.option("--json", "compact", is_flag=True, help="the object on one line")
def evaluate(model: str, retriever: str | None, device: str, dtype: str, compact: bool, **options: Any) -> None:
    """Print one JSON object: n_images, i2t, t2i, caption, caption_no_retrieval, seconds."""
    try:
        from revln.training.evaluate import EvalOptions
        from revln.training.evaluate import evaluate as run

        finder = load_folder(model_folder(retriever), device, dtype) if retriever is not None else None
        report = run(load_folder(model_folder(model), device, dtype), EvalOptions(**options), finder)
    except RevlnError as err:
        raise click.ClickException(err.message) from err
    click.echo(json.dumps(report, ensure_ascii=False, indent=None if compact else 2))


def model_folder(model: str) -> Path:
    """A folder as it stands, or a name among the shipped weights.

    Raises:
        ModelUnavailable: it is neither.
    """
    shipped = Path(__file__).resolve().parents[1] / "weights"
    for folder in (Path(model), shipped / model):
        if folder.is_dir():
            return folder.resolve()
    names = sorted(path.name for path in shipped.iterdir()) if shipped.is_dir() else []
    raise ModelUnavailable(f"there is no model '{model}': neither a folder nor one of {names}")
