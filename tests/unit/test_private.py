"""What other users of the machine can read, follow or be shown: nothing that we can help."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from revln.cli.machine import sole_user
from revln.errors import StartupError
from revln.private import keep_private
from revln.terminal import echo, visible


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


def test_new_files_are_their_owners_and_old_ones_are_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    blobs, db, other = tmp_path / "blobs", tmp_path / "revln.db", tmp_path / "other.txt"
    blobs.mkdir(mode=0o755)
    db.touch(mode=0o644)
    other.touch(mode=0o644)
    (tmp_path / "flower.link").symlink_to(other)
    keep_private(tmp_path)
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path, blobs, db, other, tmp_path / "new")}
    assert modes == {tmp_path.name: 0o755, "blobs": 0o700, "revln.db": 0o600, "other.txt": 0o644, "new": 0o600}


def test_the_lock_of_a_folder_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "up.lock").symlink_to(victim)
    with pytest.raises(StartupError, match="cannot be used"), sole_user(folder):
        pass
    assert victim.read_text() == "precious"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "evil", ["\x1b]52;c;cm0gLXJm\x07", "\x1b[2J", "\x9b2J", "a\rb", "\x08\x08", "\u202egnp.exe", "\x7f"]
)
def test_control_characters_of_others_are_text_on_a_terminal(evil: str) -> None:
    terminal, pipe = _Terminal(), io.StringIO()
    echo(f"id {evil}\tö\n2", file=terminal)
    assert terminal.getvalue() == f"id {visible(evil)}\tö\n2\n"
    assert visible(evil).isprintable()
    echo("\x9bö\r", file=pipe)
    assert pipe.getvalue() == "\x9bö\r\n"
