"""What `revln eval` measures, on drawn pictures of one colour and a model that knows colours."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from revln.cli import evaluate as cli
from revln.errors import ValidationFailed
from revln.training.data import is_held_out
from revln.training.evaluation.labels import measure_labels, names_of, read_labels
from revln.training.evaluation.options import DataSet, EvalOptions, StoreFile
from revln.training.evaluation.report import evaluate
from revln.training.labels import LabelRow
from tests.word_model import ColourModel

COLOURS = ["red", "green", "blue", "yellow", "pink", "gold"]
ITEMS = Path(__file__).parents[2].parent / "shared/data/pictures/items.jsonl"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture of each colour, and captions of all: of red and green in split dev, of the others in train."""
    for colour in COLOURS:
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    write(tmp_path / "captions.jsonl", [
        {"file": f"{c}.png", "split": "dev" if c in COLOURS[:2] else "train",
         "captions": [f"a {c} wall", f"the paint is {c}", f"{c} everywhere"]}
        for c in COLOURS
    ])  # fmt: skip
    return tmp_path


@pytest.fixture
def model() -> ColourModel:
    return ColourModel(*COLOURS)


def captioned(folder: Path, name: str = "walls", split: str = "dev", held_out: int | None = None) -> DataSet:
    return DataSet(name, folder / "captions.jsonl", folder, split, held_out)


def labelled(rows: Sequence[Sequence[str]]) -> list[LabelRow]:
    return [LabelRow(f"{i}.png", "s", "dev", tuple(labels)) for i, labels in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([["cat"], ["dog"], ["dog", "cat"], ["cat", "dog"]], ["cat", "dog"]),
        ([["apple", "pink lady"], ["apple", "royal gala"], ["leek"], ["soy milk", "alpro"]],
         ["alpro", "leek", "pink lady", "royal gala"]),
        ([["camel", "dromedary"], ["camel", "dromedary"], ["acorn"]], ["acorn", "camel"]),
    ],
    ids=["several things", "coarse and fine", "synonyms"],
)  # fmt: skip
def test_what_several_labels_mean_is_seen_in_the_sources_other_pictures(
    rows: list[list[str]], names: list[str]
) -> None:
    assert names_of(labelled(rows)) == names


@pytest.mark.skipif(not ITEMS.is_file(), reason=f"{ITEMS} is absent")
def test_the_labelled_pictures_have_the_numbers_of_names_of_their_calibration() -> None:
    by_source: dict[str, list[LabelRow]] = defaultdict(list)
    for row in read_labels(ITEMS):
        by_source[row.source].append(row)
    found = {source: len(names_of(rows)) for source, rows in by_source.items()}
    assert found == {
        "animals": 5, "caltech": 95, "cats": 1, "clothing": 10, "food": 19, "grocery": 81, "houses": 4,
        "imagenette": 10, "in1000": 998, "intel": 6, "sun": 8, "tiny": 200,
    }  # fmt: skip


def test_each_source_is_told_apart_by_its_own_names_and_what_is_no_class_is_left_out(
    folder: Path, model: ColourModel
) -> None:
    rows = [
        *[("walls", "red", ["1 red"]), ("walls", "green", ["green"]), ("walls", "green", ["pink", "2 green"])],
        *[("walls", "pink", ["green"]), ("walls", "pink", ["pink"]), ("one", "gold", ["gold"])],
        *[("all different", "red", ["red"]), ("all different", "gold", ["gold"]), ("train only", "red", ["red"])],
    ]
    lines: list[dict[str, Any]] = [
        {"file": f"{colour}.png", "source": source, "split": "train" if "train" in source else "dev", "labels": labels}
        for source, colour, labels in rows
    ]
    write(folder / "items.jsonl", [*lines, {"file": "a.png", "source": "coco", "split": "dev", "captions": ["a"]}])
    found = measure_labels(model, DataSet("labels", folder / "items.jsonl", folder, "dev"))
    assert found["sources"] == {"walls": {"n_images": 5, "n_names": 3, "top1": 0.8}}  # one is mislabelled
    assert found["left_out"] == {
        "one": "one name",
        "all different": "2 names, of which 0 have two pictures",
        "train only": "no picture of split dev",
    }
    assert found["mean_top1"] == 0.8


def test_a_name_that_is_as_near_as_the_right_one_counts_against_the_model(folder: Path) -> None:
    class Undecided(ColourModel):
        def _text(self, text: str) -> Any:
            return self._direction("anything")

    rows = [{"file": f"{c}.png", "source": "s", "split": "dev", "labels": [c]} for c in ("red", "green") * 2]
    data = DataSet("labels", write(folder / "items.jsonl", rows), folder, "dev")
    assert measure_labels(ColourModel(*COLOURS), data)["mean_top1"] == 1
    assert measure_labels(Undecided(*COLOURS), data)["mean_top1"] == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file": "a", "split": "dev", "labels": ["x"]}', "line 1: needs file, source, split, and labels .*source"),
        ('{"file": "a", "source": "s", "split": "dev", "labels": [3]}', "line 1: needs"),
        ('{"file": "a", "source": "s", "split": "dev", "labels": []}', "line 1: a picture has either labels or"),
        ("no json", "line 1: needs"),
        ('{"file": "a", "source": "s", "split": "dev", "captions": ["x"]}', "no line with labels"),
    ],
)
def test_malformed_labels_are_named_by_their_place(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "items.jsonl").write_text(line + "\n")
    with pytest.raises(ValidationFailed, match=said):
        read_labels(tmp_path / "items.jsonl")


def test_several_data_sets_and_stores_are_one_report(folder: Path, model: ColourModel) -> None:
    stores = [
        StoreFile("walls", folder / "captions.jsonl", "train"),
        StoreFile("dev", folder / "captions.jsonl", "dev"),
    ]
    data = (captioned(folder), captioned(folder, "others", "train"))
    report = evaluate(model, EvalOptions(data, tuple(stores)))
    assert (report["data"], report["n_images"], report["i2t"]["r1"]) == ("walls", 2, 100.0)
    assert report["with_evidence"] == report["stores"]["walls"]["with_evidence"] == 2
    assert report["caption"] == report["stores"]["walls"]["caption"]
    assert set(report["domains"]) == {"others"}
    others = report["domains"]["others"]
    assert others["n_images"] == 4
    assert set(others["stores"]) == {"walls", "dev"}
    assert "labels" not in report
    alone = evaluate(model, EvalOptions((captioned(folder, "others", "train"),), tuple(stores)))
    assert alone["caption"] == others["caption"]
    assert alone["caption_no_retrieval"] == others["caption_no_retrieval"]


def test_a_store_without_pictures_never_gives_a_picture_its_own_captions(folder: Path, model: ColourModel) -> None:
    """Not in other letters, and not one that the store tells of this picture and the data set does not."""
    table = folder / "captions.tsv.gz"
    groups = {
        "1": ["A red wall.", "the paint is  RED", "red, as red as red can be"],
        "2": ["green everywhere", "a wall of red bricks"],  # shares one sentence with the green picture, and is another
    }
    lines = [f"{image}\t{text}" for image, texts in groups.items() for text in texts]
    table.write_bytes(gzip.compress("\n".join(["image_id\tcaption", *lines]).encode()))
    evaluate(model, EvalOptions((captioned(folder),), (StoreFile("table", table, "train"),)))
    red, green = ([shown.text for shown in request.evidence] for request in model.asked[-2:])
    assert set(red) == {"green everywhere", "a wall of red bricks"}
    assert set(green) == {*groups["1"], "a wall of red bricks"}


def test_pictures_are_held_out_by_the_hash_of_their_name(folder: Path, model: ColourModel) -> None:
    held = [c for c in COLOURS[2:] if zlib.crc32(f"{c}.png".encode()) % 3 == 0]
    assert 0 < len(held) < 4
    report = evaluate(model, EvalOptions((captioned(folder, "walls", "train", held_out=3),), captions=False))
    assert report["n_images"] == len(held)
    assert is_held_out("coco/1000.webp", None)
    with pytest.raises(ValidationFailed, match="no picture of split 'dev' is held out"):
        evaluate(model, EvalOptions((captioned(folder, held_out=10**6),)))


def test_rows_with_labels_are_no_captioned_pictures(folder: Path, model: ColourModel) -> None:
    lines = (folder / "captions.jsonl").read_text()
    label = {"file": "none.png", "source": "s", "split": "dev", "labels": ["x"]}
    (folder / "captions.jsonl").write_text(json.dumps(label) + "\n" + lines)
    assert evaluate(model, EvalOptions((captioned(folder),), captions=False))["n_images"] == 2


def test_a_decoder_that_repeats_its_evidence_scores_as_the_evidence_does(folder: Path, model: ColourModel) -> None:
    found = evaluate(model, EvalOptions((captioned(folder, split="train"),), evidence=True))
    asked = [request.evidence for request in model.asked if request.evidence]
    assert [(one.text, one.score) for (one,) in asked] == [
        *((f"a {colour} wall", 1.0) for colour in COLOURS[2:]),
        *((f"a {colour} wall", 1.0) for colour in (*COLOURS[4:], *COLOURS[2:4])),
    ]
    told, misled = found["evidence"]["told"], found["evidence"]["misled"]
    assert told["caption"] == told["itself"]
    assert misled["caption"] == misled["itself"]
    assert misled["alone"] == found["caption_no_retrieval"]
    assert told["alone"] != misled["alone"]  # on the references without the one that was told
    assert told["n_images"] == misled["n_images"] == 4


def test_too_few_captions_or_pictures_measure_no_reading(folder: Path, model: ColourModel) -> None:
    data = captioned(folder, split="train")
    write(data.file, [{"file": "red.png", "split": "train", "captions": ["a red wall"]}])
    assert evaluate(model, EvalOptions((data,), evidence=True))["evidence"] == {"told": None, "misled": None}


def ask(model: ColourModel, monkeypatch: pytest.MonkeyPatch, *args: str) -> Any:
    monkeypatch.setattr(cli, "_load", lambda *_: model)
    return CliRunner().invoke(cli.evaluate, ["--json", *args])


def test_the_command_gives_each_data_set_its_own(
    folder: Path, model: ColourModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, where = str(folder / "captions.jsonl"), str(folder)
    items = write(folder / "items.jsonl", [
        {"file": f"{c}.png", "source": "s", "split": "test", "labels": [c]} for c in ("red", "green") * 2
    ])  # fmt: skip
    result = ask(
        model, monkeypatch, "--data", file, "--data", f"others={file}", "--images", where, "--split", "others=train",
        "--held-out", "others=1", "--store", f"walls={file}", "--labels", str(items), "--split", "labels=test",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["data"], report["split"], report["n_images"]) == (folder.name, "dev", 2)
    assert (report["domains"]["others"]["split"], report["domains"]["others"]["n_images"]) == ("train", 4)
    assert set(report["stores"]) == {"walls"}
    assert report["labels"]["sources"]["s"]["top1"] == 1.0

    alone = json.loads(ask(model, monkeypatch, "--labels", str(items), "--images", where, "--split", "test").stdout)
    assert set(alone) == {"model", "fingerprint", "labels", "seconds"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "nobody=train"], "--split nobody=train: there is no data set nobody, only a, labels"),
        (["--split", "dev", "--split", "train"], "--split is given twice for all data sets"),
        (["--data", "a=none.jsonl"], "two of --data are called a; name them"),
        (["--held-out", "0"], "--held-out 0 is no number from 1"),
        (["--store", "x=1.jsonl", "--store", "x=2.jsonl"], "two of --store are called x"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    folder: Path, model: ColourModel, monkeypatch: pytest.MonkeyPatch, more: list[str], said: str
) -> None:
    result = ask(model, monkeypatch, "--data", f"a={folder / 'captions.jsonl'}", "--images", str(folder), *more)
    assert result.exit_code == 1
    assert said in result.output
