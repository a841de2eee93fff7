"""`revln index import` and `revln index export`: a collection from files, and into files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.output import print_json
from revln.progress_bar import progress_bar

__all__ = ["export_command", "filter_option", "import_command"]


class _Json(click.ParamType[Any]):
    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as err:
            self.fail(f"not JSON: {err}", param, ctx)


filter_option = click.option("--filter", type=_Json(), help='Only these items, as in {"year": {"gte": 2020}}.')


@click.command("import", short_help="Write existing vectors from files.")
@click.argument("name", metavar="NAME")
@click.argument("paths", nargs=-1, required=True, metavar="FILE…|FOLDER", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--vectors",
    type=click.Choice(["img_emb", "text_emb"]),
    default="img_emb",
    show_default=True,
    help="Which of clip-retrieval's two.",
)
@click.option("--id-field", default="id", show_default=True, help="The field that holds an item's id.")
@click.option("--id-prefix", default="", help="What comes before the number that is the id of a row without one.")
@click.option("--overwrite", is_flag=True, help="Let such numbers take the place of items that are there.")
@click.option("--own", is_flag=True, help="Take the vectors as of no model, though the files name one.")
@url_option
@as_json_option
def import_command(
    name: str,
    paths: tuple[Path, ...],
    vectors: str,
    id_field: str,
    id_prefix: str,
    overwrite: bool,
    own: bool,
    url: str | None,
    as_json: bool,
) -> int:
    """Write existing vectors into a collection, which is made if it is not there.

    Cut off, it is run again and goes on where it stopped. Of a row without an id, its number is the id.

    \b
    Examples:
      revln index import photos vectors.npy                   row numbers are the ids
      revln index import photos vectors.npy metadata.jsonl    row i belongs to line i
      revln index import photos items.parquet                 with a column "vector" or "embedding"
      revln index import photos clip-retrieval-output/        img_emb/*.npy, metadata/*.parquet
      revln index import photos exported/                     what `revln index export` wrote
    """
    from revln.transfer.importer import import_items
    from revln.transfer.sources import open_source

    source = open_source(paths, vectors=vectors, id_field=id_field, id_prefix=id_prefix)
    with (
        connect(url, long_work=True) as client,
        _bar(source.count, as_json) as advance,
    ):
        done = import_items(client, name, source, own=own, overwrite=overwrite, on_progress=advance)
    for error in done.errors:
        click.echo(error, err=True)
    if source.ids.numbered:
        click.echo(f"Rows without an id have their number for one, as in {id_prefix}0.", err=True)
    if as_json:
        print_json({"items": done.items, "failed": done.failed})
    else:
        failed = f", {done.failed} failed" if done.failed else ""
        click.echo(f"{name}: {done.items} items written{failed}")
    return 1 if done.failed else 0


@click.command("export", short_help="Write it into files.")
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@filter_option
@url_option
@as_json_option
def export_command(name: str, folder: Path, filter: dict[str, Any] | None, url: str | None, as_json: bool) -> None:
    """Write a collection into a folder: vectors.npy, items.parquet and collection.json.

    `revln index import` reads it back bit for bit; numpy and everything that reads Parquet read it too.
    """
    from revln.transfer.exporter import export_items

    with connect(url, long_work=True) as client, _bar(None, as_json) as advance:
        count = export_items(client, name, folder, filter=filter, on_progress=advance)
    if as_json:
        print_json({"items": count})
    else:
        click.echo(f"{folder}: {count} items of {name}")


@contextmanager
def _bar(total: int | None, as_json: bool) -> Iterator[Callable[[int], None]]:
    with progress_bar("items", total, hidden=as_json or not sys.stderr.isatty()) as advance:
        yield lambda more: advance(more, "")
