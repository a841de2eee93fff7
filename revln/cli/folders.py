"""What of the files and folders that someone names are pictures, and what is left out, and why."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from revln.jobs.schemas import MAX_ID_CHARS
from revln.jobs.text import is_storable

__all__ = ["Found", "find_pictures", "item_id"]

# These are sent whatever is in them: the server says what is wrong with one that is damaged.
_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"}
)
# What a NAS, macOS and Windows put beside pictures: thumbnails, attributes.
_QUIET_FOLDERS = frozenset({"@eaDir", ".@__thumb", ".thumbnails", "__MACOSX"})
_QUIET_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_HEAD_BYTES = 64


@dataclass(slots=True)
class Found:
    """``left_out`` has the files for each reason; ``unread`` those that could not be read, and why."""

    pictures: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    unread: list[tuple[Path, str]] = field(default_factory=list)


def find_pictures(paths: tuple[Path, ...]) -> Found:
    """Return the files that are named, and the pictures in the folders, by their names or by their first bytes.

    Links to folders are followed, each folder once, under its own name if that is in the search too.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()
    for path in paths:
        if path.is_dir():
            for file in _files(path, found, seen):
                _judge(file, found)
        else:
            found.pictures.append(path)
    found.pictures = list(dict.fromkeys(found.pictures))
    return found


def item_id(path: Path) -> str:
    """Return the path; one that cannot be an item's id is cut and made one, with a hash of the whole."""
    name = str(path)
    if is_storable(name) and len(name) <= MAX_ID_CHARS:
        return name
    mark = f"~{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    shown = os.fsencode(path).decode(errors="backslashreplace")
    return shown[-(MAX_ID_CHARS - len(mark)) :] + mark


def _files(root: Path, found: Found, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below, sorted by folder; linked folders come last."""
    linked = deque([root])
    while linked:
        start = linked.popleft()
        for folder, names, files in os.walk(start, onerror=lambda error: _note(found, error)):
            here = Path(folder)
            about = here.stat()
            if (about.st_dev, about.st_ino) in seen:
                names.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            names[:] = sorted(name for name in names if name not in _QUIET_FOLDERS)
            linked += [here / name for name in names if (here / name).is_symlink()]
            yield from (here / name for name in sorted(files) if not name.startswith("._") and name not in _QUIET_FILES)


def _note(found: Found, error: OSError) -> None:
    found.unread.append((Path(error.filename), error.strerror or str(error)))


def _judge(file: Path, found: Found) -> None:
    from revln.images.signature import describe, format_of

    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for who writes into it
            found.left_out.setdefault("no file", []).append(file)
            return
        if file.suffix.lower() in _SUFFIXES:
            found.pictures.append(file)
            return
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except FileNotFoundError:
        found.left_out.setdefault("a link that leads nowhere", []).append(file)
    except OSError as error:
        _note(found, error)
    else:
        if format_of(head) not in (None, "BMP"):  # BMP's two letters may begin any text
            found.pictures.append(file)
        else:
            found.left_out.setdefault(describe(head, None), []).append(file)
