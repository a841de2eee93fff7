"""`revln demo --embedded`: from nothing to a page, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def test_the_demo_runs_from_nothing_writes_one_self_contained_page_and_leaves_no_process(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (80, 60), colour).save(pictures / f"{number} & <{colour}>.png")
    (pictures / "4 broken.jpg").write_bytes(b"not a picture")
    (pictures / "notes.txt").write_text("no picture either")
    env = {name: value for name, value in os.environ.items() if not name.startswith("REVLN_")}
    command = [sys.executable, "-m", "revln.cli.main", "demo", "--embedded", "--limit", "5"]
    (pictures / "5 last.png").write_bytes((pictures / "0 & <red>.png").read_bytes())
    done = subprocess.run(
        [*command, "--images", str(pictures), "--out", str(tmp_path / "demo.html")],
        capture_output=True,
        text=True,
        timeout=150,
        env=env | {"TMPDIR": str(tmp_path), "COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r" (embed|index|search|caption) +succeeded ", done.stdout) == [
        "embed", "index", "index", "search", "search", "caption",
    ]  # fmt: skip
    assert "left out" in done.stdout
    page = (tmp_path / "demo.html").read_text()
    assert page.count('<article class="card">') == 4
    assert page.count('<article class="search">') == 4
    assert "0 &amp; &lt;red&gt;" in page
    assert "<red>" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script""", page), "it asks another address"
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])
    ]
    assert not list(tmp_path.glob("revln-*")), "its temporary folder is gone"
