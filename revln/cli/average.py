"""`revln average`: one model of several."""

from __future__ import annotations

from pathlib import Path

import click

from revln.cli.evaluate import model_folder
from revln.errors import RevlnError

__all__ = ["average"]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="NAME|DIR...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="checkpoint folder that is to be written")
def average(models: tuple[str, ...], out: Path) -> None:
    """Write the model whose weights are the mean of the MODELS' weights.

    All of them are of the revln family and were trained by 'revln train --init' from the same model. Run 'revln train
    --init OUT --epochs 0' afterwards: it fits the decoder to the new trunk and measures the thresholds.
    """
    try:
        from revln.training.average import average as run

        run([model_folder(model) for model in models], out)
    except RevlnError as err:
        raise click.ClickException(err.message) from err
