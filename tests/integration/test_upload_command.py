"""`revln upload` on a folder, and the one job that a manifest makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from revln.cli.upload import upload
from tests import pictures
from tests.stack import Stack


@pytest.fixture
def album(tmp_path: Path) -> Path:
    (tmp_path / "deeper").mkdir()
    for n, name in enumerate(["a.jpg", "b.JPEG", "deeper/c.jpg"]):
        (tmp_path / name).write_bytes(pictures.jpeg(80, 60, n))
    (tmp_path / "notes.txt").write_text("no picture, and not looked at")
    return tmp_path


def test_a_folder_becomes_a_manifest_and_the_manifest_one_job(stack: Stack, album: Path) -> None:
    run = CliRunner().invoke(upload, [str(album), "--manifest", "--url", stack.url], standalone_mode=False)
    assert run.exception is None, run.output
    assert run.return_value == 0
    *lines, last = run.stdout.splitlines()
    assert len(lines) == 3
    assert last.endswith("manifest of 3 pictures")
    stack.http.put("/v1/collections/album", json={})
    body = {"collection": "album", "manifest": {"sha256": last.split()[0]}}
    job = stack.client.submit("index", body, wait_s=30)
    assert job["counts"] == {"total": 3, "succeeded": 3, "failed": 0}
    ids = [item["id"] for item in stack.http.get("/v1/collections/album/items").json()["items"]]
    assert ids == sorted(str(album / name) for name in ("a.jpg", "b.JPEG", "deeper/c.jpg"))


def test_a_file_that_is_no_picture_is_said_and_the_others_are_stored(stack: Stack, album: Path) -> None:
    (album / "broken.png").write_bytes(b"not a picture")
    run = CliRunner().invoke(upload, [str(album), "--url", stack.url], standalone_mode=False)
    assert run.return_value == 1
    assert run.stdout.count("80×60") == 3
    assert "broken.png" in run.stderr


def test_a_folder_without_a_readable_picture_says_so_and_fails(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    run = CliRunner().invoke(upload, [str(tmp_path), "--url", stack.url], standalone_mode=False)
    assert run.return_value == 1
    assert "left out: 1 (.heic): a HEIC, AVIF or video file" in run.stderr
    assert "Convert HEIC" in run.stderr


def test_names_that_are_no_ids_are_told_and_their_pictures_can_be_indexed(stack: Stack, album: Path) -> None:
    (album / os.fsdecode(b"caf\xe9.jpg")).write_bytes(pictures.jpeg(8, 8, 9))
    run = CliRunner().invoke(upload, [str(album), "--manifest", "--url", stack.url], standalone_mode=False)
    assert run.return_value == 0, run.output
    assert "cannot be an id" in run.stderr
    stack.http.put("/v1/collections/odd-names", json={})
    body = {"collection": "odd-names", "manifest": {"sha256": run.stdout.splitlines()[-1].split()[0]}}
    job = stack.client.submit("index", body, wait_s=30)
    assert job["counts"] == {"total": 4, "succeeded": 4, "failed": 0}
