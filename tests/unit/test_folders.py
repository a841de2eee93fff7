"""What `revln upload` takes of a folder, what it leaves out, and what it calls the items."""

from __future__ import annotations

import os
from pathlib import Path

from revln.cli.folders import find_pictures, item_id
from tests import pictures

JPEG = pictures.jpeg(8, 8, 1)


def write(folder: Path, *names: str, data: bytes = JPEG) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_pictures_are_known_by_name_or_by_their_first_bytes_and_the_rest_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a.jfif", "b.JPE", "no-suffix", "@eaDir/a.jpg", "._a.jpg", "deep/@eaDir/c/x.jpg", ".DS_Store")
    write(tmp_path, "broken.png", "BMW.txt", "Thumbs.db", data=b"BM, says a text")
    write(tmp_path, "c.heic", "d.avif", data=b"\0\0\0\x18ftypheic")
    write(tmp_path, "e.tif", data=b"II*\0")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = find_pictures((tmp_path,))
    assert [path.name for path in found.pictures] == ["a.jfif", "b.JPE", "broken.png", "no-suffix"]
    assert {why: sorted(path.name for path in files) for why, files in found.left_out.items()} == {
        "not a picture that revln knows": ["BMW.txt"],
        "a HEIC, AVIF or video file": ["c.heic", "d.avif"],
        "a TIFF": ["e.tif"],
        "no file": ["pipe.jpg"],
        "a link that leads nowhere": ["gone.jpg"],
    }
    assert not found.unread


def test_linked_folders_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, "album/z/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "album/0link").symlink_to(tmp_path / "album/z")
    (tmp_path / "album/z/up").symlink_to(tmp_path / "album")
    (tmp_path / "album/out").symlink_to(tmp_path / "elsewhere")
    found = find_pictures((tmp_path / "album", tmp_path / "album/z"))
    assert found.pictures == [tmp_path / "album/z/a.jpg", tmp_path / "album/out/b.jpg"]


def test_a_name_that_cannot_be_an_id_gets_one_of_its_own() -> None:
    odd = [Path(os.fsdecode(b"caf\xe9.jpg")), Path(os.fsdecode(b"caf\xe8.jpg")), Path("caf\\xe9.jpg")]
    odd += [Path("x" * n + "/a.jpg") for n in (600, 601)]
    ids = [item_id(path) for path in odd]
    assert len(set(ids)) == len(ids)
    assert all(len(each) <= 512 and each.encode() for each in ids)
    assert ids[0].startswith("caf\\xe9.jpg~")
    assert ids[2] == "caf\\xe9.jpg"
