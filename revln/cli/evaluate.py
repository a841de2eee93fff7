"""`revln eval`: Recall@K and caption scores of a model, as one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from revln.cli.data_sets import LABELS, ByName, data_sets, label_set, names_of, store_files
from revln.errors import ModelUnavailable, RevlnError, ValidationFailed
from revln.models.base import Model
from revln.models.device import cuda_count
from revln.models.families import AUTO, weights_only
from revln.models.registry import ModelCatalog
from revln.models.sources import fetch
from revln.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from revln.training.evaluation.options import EvalOptions

__all__ = ["device_of", "evaluate", "model_folder"]

_DATA = Path("../shared/data/flickr8k")
_FILE = click.Path(path_type=Path)


@click.command("eval")
@click.option(
    "--model",
    metavar="NAME|DIR",
    default="revln-tiny",
    show_default=True,
    help="revln-tiny, a name of REVLN_MODELS, or a folder",
)
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]FILE",
    help="captioned pictures; several times for several data sets (NAME: else the file's folder) "
    f"[default: {_DATA / 'captions.jsonl'}; none beside --labels]",
)
@click.option(
    "--images",
    multiple=True,
    metavar="[NAME=]PATH",
    help="folder or zip of the pictures of a data set, or of all [default: images.zip beside the file]",
)
@click.option("--split", multiple=True, metavar="[NAME=]SPLIT", default=["dev"], show_default=True)
@click.option(
    "--held-out",
    multiple=True,
    metavar="[NAME=]N",
    help="measure only the pictures of which crc32(file name) % N is 0: the others may be trained on",
)
@click.option(
    "--labels", type=_FILE, help="labelled pictures, to be named; its NAME for --images and --split is labels"
)
@click.option(
    "--store",
    multiple=True,
    metavar="[NAME=]FILE",
    help="captions to retrieve evidence from, a TSV without pictures too; several times for several stores",
)
@click.option("--retriever", metavar="NAME|DIR", help="model that finds the evidence, if not the evaluated one")
@click.option("--store-split", default="train", show_default=True)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="only the first N pictures of each data set and source of labels (recall is easier among fewer)",
)
@click.option("--captions/--no-captions", default=True, show_default=True, help="caption scores too")
@click.option(
    "--evidence", is_flag=True, help="does the decoder read it: captions told a person's caption, and a stranger's"
)
@click.option("--num-beams", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=0,
    help="add N captions, evenly spaced over the split, to the report",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1; auto: a GPU if there is one")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="default: what REVLN_MODELS says of the name, else float32",
)
@click.option("--json", "compact", is_flag=True, help="the object on one line")
def evaluate(model: str, retriever: str | None, device: str, dtype: str | None, compact: bool, **options: Any) -> None:
    """Print one JSON object: n_images, i2t, t2i, caption, caption_no_retrieval, seconds; and labels, domains."""
    try:
        from revln.training.evaluation.report import evaluate as run

        told = _told(**options)
        where = device_of(device)
        finder = _load(retriever, where, dtype) if retriever is not None else None
        measured = _load(model, where, dtype)
        report = run(measured, told, finder)
    except RevlnError as err:
        raise click.ClickException(err.message) from err
    if all(report.get(figures) is None for figures in ("i2t", "caption_no_retrieval", "labels")):
        does = ", ".join(measured.info.operations)
        click.echo(
            f"nothing was measured: {model} does {does}; Recall@K takes both embed_image and embed_text, and caption "
            "scores take caption (and no --no-captions)",
            err=True,
        )
    click.echo(json.dumps(report, ensure_ascii=False, indent=None if compact else 2))


def _told(
    data: Sequence[str],
    images: Sequence[str],
    split: Sequence[str],
    held_out: Sequence[str],
    labels: Path | None,
    store: Sequence[str],
    store_split: str,
    **others: Any,
) -> EvalOptions:
    from revln.training.evaluation.options import EvalOptions

    data = data or (() if labels else (str(_DATA / "captions.jsonl"),))
    known = [*names_of(data), LABELS]
    pictures, splits = ByName.read("--images", images, known), ByName.read("--split", split, known)
    return EvalOptions(
        data=data_sets(data, pictures, splits, ByName.read("--held-out", held_out, known)),
        stores=store_files(store, store_split),
        labels=None if labels is None else label_set(labels, pictures, splits),
        **others,
    )


def model_folder(model: str) -> Path:
    """Where the files are of what `_named` finds; a hub model is downloaded first.

    Raises:
        ModelUnavailable: there is none; or its folder alone does not say what it is.
    """
    _, spec = _named(model)
    if weights_only(spec.family):
        raise ModelUnavailable(
            f"model '{model}' is of family {spec.family}, which only embeds pictures: nothing to go on from, to learn "
            "from, or to take the mean of. Name one of the revln family, or a teacher that embeds texts."
        )
    return fetch(spec.source, spec.revision).folder


def device_of(option: str) -> str:
    """The device that --device names; ``auto`` is a GPU if there is one.

    Raises:
        ValidationFailed: it is none, or this machine does not have it.
    """
    if option == "cpu":
        return option
    there = cuda_count()
    if option == AUTO:
        return "cuda" if there else "cpu"
    found = re.fullmatch(r"cuda(?::(\d+))?", option)
    if found is None or int(found[1] or 0) >= there:
        has = f"cuda:0 to cuda:{there - 1}" if there else "no CUDA device that works"
        raise ValidationFailed(f"--device {option} is not there: this machine has {has}. Say --device cpu, or auto.")
    return option


def _load(model: str, device: str, dtype: str | None) -> Model:
    """As `ModelCatalog.load`, but on this very device: REVLN_MODELS says where workers run it."""
    name, spec = _named(model)
    here = spec.model_copy(update={"device": AUTO, "dtype": dtype or spec.dtype})
    return ModelCatalog({name: here}).load(name, device)


def _named(model: str) -> tuple[str, ModelSettings]:
    """What REVLN_MODELS or revln itself calls so, else the folder of that path.

    Raises:
        ModelUnavailable: it is neither.
        SettingsError: a REVLN_* value is wrong.
    """
    settings = Settings.from_env()
    catalog = ModelCatalog(settings.models, settings.default_model)
    if model in catalog.names:
        return model, catalog.spec(model)
    folder = Path(model).resolve()
    if folder.is_dir():
        return folder.name, ModelSettings(source=str(folder))
    raise ModelUnavailable(
        f"there is no model '{model}': neither a name of REVLN_MODELS ({', '.join(catalog.names)}) nor a folder"
    )
