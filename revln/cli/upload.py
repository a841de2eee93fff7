"""`revln upload`: pictures, whole folders of them, and the manifest that makes one job of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from revln.cli.folders import Found, find_pictures, item_id
from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.output import print_json
from revln.client import RevlnClient
from revln.errors import Forbidden, ImageError, ItemError, RevlnError, TooBusy, Unauthorized, Unavailable, UsersError
from revln.jobs.schemas import MAX_ID_CHARS
from revln.progress_bar import tracked

__all__ = ["upload"]

UPLOADS_AT_ONCE = 8
_SHOWN_KINDS = 8


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER…", type=click.Path(exists=True, path_type=Path))
@click.option("--manifest", is_flag=True, help="Store a manifest of them too, and print its name last.")
@url_option
@as_json_option
def upload(paths: tuple[Path, ...], manifest: bool, url: str | None, as_json: bool) -> int:
    """Store pictures and print the names under which jobs may use them.

    A picture's name is the SHA-256 of its bytes: {"image": {"sha256": "…"}}. A folder is searched for pictures, linked
    folders too; what is left out is said, with the reason. With --manifest one job may use them all: {"manifest":
    {"sha256": "…"}}; an item's id is then the picture's path.

    A busy server is waited for as long as it asks, and one that is away for ten minutes. Cut off, it is run again: a
    picture that is there already is kept once.

    \b
    Examples:
      revln upload beach.jpg
      revln upload ~/Pictures --manifest
    """
    found = find_pictures(paths)
    items: list[dict[str, Any]] = []
    # The client is closed first: that ends the waiting of the threads, of which there is a pool.
    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool, connect(url, long_work=True) as client:
        results = pool.map(lambda file: _store(client, file), found.pictures)
        # The bar is only for a person who waits for many.
        for file in tracked(found.pictures, "upload", hidden=len(found.pictures) < 20):
            try:
                stored = next(results)
            except RevlnError as error:
                done = f"{len(items)} of {len(found.pictures)} pictures are stored; run it again to go on"
                raise Unavailable(f"{error.message} ({done})") from error
            if isinstance(stored, RevlnError):
                click.echo(f"{file}: {stored.message}", err=True)
                continue
            items.append({"id": _named(file), "image": {"sha256": stored["sha256"]}})
            if as_json:
                print_json(stored)
            else:
                named = str(file).encode("utf-8", "backslashreplace").decode()  # a name need not be UTF-8
                click.echo(f"{stored['sha256']}  {named}  {stored['width']}×{stored['height']}")
        if manifest and items:
            stored = client.upload_manifest([json.dumps(item).encode() + b"\n" for item in items])
            if as_json:
                print_json(stored)
            else:
                click.echo(f"{stored['sha256']}  manifest of {stored['lines']} pictures")
    _tell_rest(found)
    return 0 if items and len(items) == len(found.pictures) and not found.unread else 1


def _tell_rest(found: Found) -> None:
    for path, why in found.unread:
        click.echo(f"{path}: {why}", err=True)
    for why, files in found.left_out.items():
        kinds = ", ".join(sorted({file.suffix.lower() or file.name for file in files})[:_SHOWN_KINDS])
        click.echo(f"left out: {len(files)} ({kinds}): {why}; {files[0]}", err=True)
    if not found.pictures:
        click.echo("there was no picture that revln reads. Convert HEIC, AVIF and TIFF to JPEG or PNG.", err=True)


def _named(file: Path) -> str:
    found = item_id(file)
    if found != str(file):
        click.echo(f"{file}: cannot be an id, which is UTF-8 of {MAX_ID_CHARS} characters; its id is {found}", err=True)
    return found


def _store(client: RevlnClient, file: Path) -> dict[str, Any] | RevlnError:
    try:
        return client.upload(file)
    except (Forbidden, TooBusy, Unauthorized):  # the others would fare no better
        raise
    except (ItemError, UsersError) as error:
        return error
    except OSError as error:
        return ImageError(error.strerror or str(error))
