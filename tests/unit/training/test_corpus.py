"""What a run is told to learn from: label files, several files of captions, weights, pictures that are held out."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from pathlib import Path

import pytest

from revln.errors import ValidationFailed
from revln.training.corpus import read_corpus
from revln.training.labels import LabelRow, read_label_file
from revln.training.options import TrainOptions
from revln.training.stage import endless_rows, rows_of, steps_of
from tests.tiny_training import save_training_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training_data(tmp_path_factory.mktemp("squares"))


def options(data: Path, /, **more: object) -> TrainOptions:
    files: dict[str, object] = {"data": (data / "captions.jsonl",), "images": (data,)}
    files |= {"labels": (data / "items.jsonl",), "label_images": (data,)}
    return TrainOptions(out=data / "out", **(files | more))  # type: ignore[arg-type]


def test_captioned_rows_of_a_label_file_join_the_captioned_pictures(data: Path) -> None:
    corpus = read_corpus(options(data))
    assert Counter(photo.source for photo in corpus.captioned) == {"squares0": 8, "shown": 8}
    assert len(corpus.labelled) == len(corpus.dev_labelled) == 8
    assert corpus.labelled[0].labels == ("red",)  # there were two of them
    assert corpus.labelled[0].texts == ("a photo of a red.",)
    assert corpus.names == {"colours": sorted({photo.labels[0] for photo in corpus.labelled})}
    assert corpus.pictures[corpus.labelled[2].file].size == (42, 50)


def test_what_is_held_out_is_measured_on_and_not_trained_on(data: Path) -> None:
    corpus = read_corpus(options(data, held_out=3))
    mine = {f"{i}.png" for i in range(8) if zlib.crc32(f"{i}.png".encode()) % 3 == 0}
    assert 0 < len(mine) < 8
    held = {photo.file.rpartition("/")[2] for photo in corpus.dev if photo.source == "shown"}
    assert held == mine
    assert {p.file.rpartition("/")[2] for p in corpus.captioned if p.source == "shown"}.isdisjoint(mine)


def test_extra_captions_that_dev_has_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.tsv"
    extra.write_text("image_id\tcaption\n1\ta red square .\n1\tanother\n2\ta cat\n")
    assert read_corpus(options(data, extra_captions=extra)).extra == [("a cat",)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": (("coco", 2.0),)}, "--weight coco: there is no such source, only colours, shown, squares0"),
        ({"images": ("a", "b")}, "--images is given 2 times for 1 --data; give one for all, or one for each in order"),
        ({"data": (), "labels": ()}, "no pictures to train on; give --data, --labels or both"),
        ({"split_train": "no"}, "holds nothing of split 'no'"),
    ],
)
def test_options_that_fit_no_file_are_named(data: Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationFailed, match=re.escape(said)):
        read_corpus(options(data, **more))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file": "a", "source": "s", "split": "train"}, "line 2: a picture has either labels or captions"),
        ({"file": "a", "source": "s", "split": "train", "labels": "cat"}, "line 2: needs file, source, split, and"),
        ({"file": "a", "source": "s", "split": "train", "labels": [" "]}, "line 2: needs file, source, split, and"),
        ({"file": "a", "split": "train", "labels": ["cat"]}, "line 2: needs file, source, split, and"),
    ],
)
def test_a_malformed_line_of_a_label_file_is_named(tmp_path: Path, row: dict[str, object], said: str) -> None:
    path = tmp_path / "items.jsonl"
    good = {"file": "a", "source": "s", "kind": "object", "labels": ["3 black cat"], "split": "train"}
    path.write_text(json.dumps(good) + "\n\n")
    assert read_label_file(path) == [LabelRow("a", "s", "train", ("black cat",))]
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValidationFailed, match=f"{re.escape(str(path))}, {said}"):
        read_label_file(path)


def test_a_row_is_seen_as_often_as_it_weighs() -> None:
    weights = [2.0, 1.0, 0.5, 0.5, 1.0, 1.0]
    assert steps_of(weights, 2) == 3
    seen: Counter[int] = Counter()
    for epoch in range(200):
        passed = [i for step in range(3) for i in rows_of((epoch,), weights, 2, step).tolist()]
        assert len(passed) == 6
        seen.update(passed)
    for i, weight in enumerate(weights):
        assert seen[i] == pytest.approx(200 * weight, abs=25)
    # Rows that weigh nothing but 1 are each seen once.
    assert sorted(i for step in range(3) for i in rows_of((1, 2), [1.0] * 6, 2, step)) == list(range(6))
    following = [endless_rows((1,), [1.0] * 4, 2, at).tolist() for at in range(4)]
    assert sorted(following[0] + following[1]) == sorted(following[2] + following[3]) == [0, 1, 2, 3]
