"""The demonstration's page and what it is made from."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from revln.cli.demo import data as demo_data
from revln.cli.demo.contact_sheet import Card, Picture, Search, Sheet, render
from revln.errors import StartupError
from revln.jobs.schemas import Item

HOSTILE = "<script>alert('1')</script> & \"friends\""
JOB: dict[str, Any] = {
    "id": "j1",
    "kind": "embed",
    "status": "succeeded",
    "metadata": {"demo": HOSTILE},
    "counts": {"total": 2, "succeeded": 2, "failed": 0},
    "created_at": "2026-01-01T00:00:00.000Z",
    "started_at": "2026-01-01T00:00:01.000Z",
    "finished_at": "2026-01-01T00:00:02.500Z",
}


def sheet(**changes: Any) -> Sheet:
    one, two = (Picture(name, HOSTILE, b"large " + name.encode(), b"small") for name in ("one", "two"))
    values: dict[str, Any] = {
        "source": HOSTILE,
        "model": "revln-tiny",
        "dim": 2,
        "sentences": 3,
        "seconds": 1.25,
        "searches": [Search(HOSTILE, [(one, 0.75), (two, -0.25)]), Search(two, [])],
        "cards": [
            Card(one, [(HOSTILE, 0.625)], [(HOSTILE, 0.5)], [(two, 0.5)]),
            Card(two, [], [], [], error="it could not be read"),
        ],
        "vectors": [(one, [1.0, 0.0]), (two, [0.6, 0.8])],
        "jobs": [JOB],
    }
    return Sheet(**{**values, **changes})


class Tags(HTMLParser):
    """Checks that every tag that was opened is closed, in order."""

    EMPTY = frozenset({"meta", "img", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_no_other_address() -> None:
    page = render(sheet())
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in tags.addresses)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_a_picture_without_evidence_says_so() -> None:
    near, far = (Card(Picture("one", "One", b"l", b"s"), [("a dog", 0.625)], found, []) for found in ([("x", 0.5)], []))
    said = "None of the sentences is near enough."
    assert said not in render(sheet(cards=[near]))
    assert render(sheet(cards=[near, far])).count(said) == 1


def test_a_picture_that_the_model_is_unsure_of_says_so() -> None:
    unsure = Card(Picture("one", "One", b"l", b"s"), [], [], [], unsure="below min_confidence <0.4>")
    assert "<p>below min_confidence &lt;0.4&gt;</p>" in render(sheet(cards=[unsure]))


def test_a_caption_of_a_model_that_measures_no_confidence_has_no_figure() -> None:
    plain = Card(Picture("one", "One", b"l", b"s"), [("a dog", None)], [], [])
    assert "<li><span>a dog</span></li>" in render(sheet(cards=[plain]))


def test_what_others_wrote_is_text_and_never_markup() -> None:
    page = render(sheet())
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_figures_stand_where_they_should() -> None:
    page = render(sheet())
    assert '<data value="0.6250">62%</data>' in page
    assert "<b>0.75</b>" in page
    assert 'style="width:75.0%"' in page
    assert 'style="width:0.0%"' in page, "a negative cosine has no bar"
    assert "0.60</td>" in page, "the matrix holds the cosine of the two vectors"
    assert "<td>1.50</td>" in page, "the job took a second and a half"
    assert "it could not be read" in page


def test_a_matrix_that_no_screen_holds_is_left_out() -> None:
    picture = Picture("p", "p", b"", b"")
    assert 'class="matrix"' in render(sheet())
    assert 'class="matrix"' not in render(sheet(vectors=[(picture, [1.0])] * 25))


def test_the_sample_photographs_are_in_the_wheel() -> None:
    plan = demo_data.samples()
    assert len(plan.pictures) == 12
    for picture in (*plan.pictures, plan.query):
        with Image.open(picture.path) as image:
            assert min(image.size) >= 300
    assert plan.query.id not in {picture.id for picture in plan.pictures}


def test_the_sentences_are_items_and_each_is_there_once() -> None:
    assert len(set(demo_data.SENTENCES)) == len(demo_data.SENTENCES) > 100
    assert all(Item(text=text).text == text for text in demo_data.SENTENCES)


def test_a_folder_gives_its_pictures_by_name_and_keeps_the_last_to_search_with(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt", "d.svg"):
        (tmp_path / name).touch()
    plan = demo_data.from_folder(tmp_path, 48)
    assert [picture.id for picture in plan.pictures] == ["a.png", "b.JPG"]
    assert plan.query.id == "deep/c.webp"
    assert len(demo_data.from_folder(tmp_path, 1).pictures) == 1


def test_a_folder_without_pictures_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="holds 0 pictures"):
        demo_data.from_folder(tmp_path, 48)
