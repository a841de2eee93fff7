"""`revln upload`: pictures, whole folders of them, and the manifest that makes one job of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.output import print_json
from revln.client import RevlnClient
from revln.errors import ImageError, ItemError, RevlnError, UsersError
from revln.progress_bar import tracked

__all__ = ["upload"]

UPLOADS_AT_ONCE = 8
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER…", type=click.Path(exists=True, path_type=Path))
@click.option("--manifest", is_flag=True, help="Store a manifest of them too, and print its name last.")
@url_option
@as_json_option
def upload(paths: tuple[Path, ...], manifest: bool, url: str | None, as_json: bool) -> int:
    """Store pictures and print the names under which jobs may use them.

    A picture's name is the SHA-256 of its bytes: {"image": {"sha256": "…"}}. A folder is searched for pictures, and a
    file that is none is said and skipped. With --manifest one job may use them all: {"manifest": {"sha256": "…"}}; an
    item's id is then the picture's path.

    \b
    Examples:
      revln upload beach.jpg
      revln upload ~/Pictures --manifest
    """
    files = list(_pictures(paths))
    items: list[dict[str, Any]] = []
    with connect(url) as client, ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        results = pool.map(lambda file: _store(client, file), files)
        # The bar is only for a person who waits for many.
        for file, found in zip(tracked(files, "upload", hidden=len(files) < 20), results, strict=True):
            if isinstance(found, RevlnError):
                click.echo(f"{file}: {found.message}", err=True)
                continue
            items.append({"id": str(file), "image": {"sha256": found["sha256"]}})
            if as_json:
                print_json(found)
            else:
                click.echo(f"{found['sha256']}  {file}  {found['width']}×{found['height']}")
        if manifest and items:
            stored = client.upload_manifest(json.dumps(item).encode() + b"\n" for item in items)
            click.echo(f"{stored['sha256']}  manifest of {stored['lines']} pictures")
    return 0 if len(items) == len(files) else 1


def _pictures(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            yield path


def _store(client: RevlnClient, file: Path) -> dict[str, Any] | RevlnError:
    try:
        return client.upload(file)
    except (ItemError, UsersError) as error:
        return error
    except OSError as error:
        return ImageError(str(error))
