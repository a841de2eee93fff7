"""`revln delete`: jobs that are done, and what was uploaded."""

from __future__ import annotations

import click

from revln.cli.jobs import connect, url_option
from revln.cli.wording import in_commands
from revln.errors import UsersError

__all__ = ["delete"]

_SHA256_CHARS = 64


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|SHA256…")
@click.option("--manifest", is_flag=True, help="The SHA-256s are of manifests, not of pictures.")
@url_option
def delete(names: tuple[str, ...], manifest: bool, url: str | None) -> int:
    """Delete jobs that are done, by their ids, and uploaded pictures, by their SHA-256.

    An upload that a job or an item still needs is not deleted: what needs it is said. The others are.

    \b
    Examples:
      revln delete 01a20bd0-50aa-743b-a66e-f88569ac573a
      revln delete 9741129e…                       a picture, by all 64 digits of it
      revln delete --manifest 1c20f0aa…
    """
    kept = 0
    with connect(url) as client:
        for name in names:
            try:
                if len(name) == _SHA256_CHARS:
                    client.delete_upload(name, "manifest" if manifest else "image")
                else:
                    client.delete(name)
            except UsersError as error:
                kept += 1
                click.echo(f"{name}: {in_commands(error.message)}", err=True)
    return 1 if kept else 0
