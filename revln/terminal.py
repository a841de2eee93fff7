"""What others wrote, shown on a terminal: its control characters as text, so that it can move, hide or run nothing."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import IO, Any

import click

__all__ = ["echo", "mend_streams", "visible"]

# C0 but tab and newline, DEL, C1; and what reorders the text around it.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_click_echo = click.echo


def visible(text: str) -> str:
    """Return ``text`` with control characters as escapes, as in ``\\x1b``."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def echo(message: Any = None, file: IO[Any] | None = None, nl: bool = True, err: bool = False, **more: Any) -> None:
    """Do as `click.echo`; on a terminal without control characters. A file or a pipe gets what there is."""
    stream = file or (sys.stderr if err else sys.stdout)
    if isinstance(message, str) and stream.isatty():
        message = visible(message)
    _click_echo(message, file, nl, err, **more)


def mend_streams() -> None:
    """Let any text be written, as an escape where the encoding has no sign for it; a closed stream is an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
