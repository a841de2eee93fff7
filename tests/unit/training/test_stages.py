"""Runs over captioned and labelled pictures, killed and gone on with in every stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from revln.cli.train import train
from revln.models.base import Operation
from revln.models.revln.captioning import CONFIDENCE_FEATURES
from revln.models.revln.model import load
from revln.training.progress import Progress
from tests.tiny_models import save_sentence
from tests.tiny_training import arguments, run_train, save_training_data, stages_of, weights_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing cut."""
    out = tmp_path_factory.mktemp("whole")
    run_train(arguments(data, out, epochs=2))
    return out


@pytest.mark.parametrize(("steps", "kept"), [(300, 0.99), (301, 0.995)])
def test_the_average_of_a_stage_of_many_steps_goes_further_back(tmp_path: Path, steps: int, kept: float) -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    groups = [{"params": list(module.parameters()), "lr": 0.0}]
    progress = Progress(tmp_path / "stage.pt", groups, {"module": module}, lambda step: 1.0, steps)
    for _ in range(2000):
        progress.advance(0.0)
    torch.nn.init.ones_(module.weight)
    progress.advance(0.0)
    with progress.averaged():
        assert module.weight.item() == pytest.approx(1 - kept, rel=1e-3)


def test_a_run_learns_from_captions_labels_and_texts_in_this_order(whole: Path) -> None:
    assert stages_of(whole) == ["text", "joint", "language", "caption"]
    config = json.loads((whole / "config.json").read_text())
    assert len(config["caption_confidence"]) == 1 + len(CONFIDENCE_FEATURES)
    assert config["evidence_levels"] == sorted(config["evidence_levels"])
    assert set(config["match_min_score"]) == {"text", "image"}
    model = load("tiny", whole, "cpu")
    (vector,) = model.forward(Operation.EMBED_TEXT, [model.prepare(Operation.EMBED_TEXT, "a red square")])
    assert vector.shape == (32,)
    header, *rows = (line.split(",") for line in (whole / "curves.csv").read_text().splitlines())
    measured = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert measured["joint"]["names"]
    assert measured["caption"]["cider_told"]


@pytest.mark.parametrize("stage", ["text", "joint", "language", "caption"])
def test_a_run_that_was_killed_in_a_stage_goes_on_to_the_same_weights(
    data: Path, whole: Path, tmp_path: Path, stage: str
) -> None:
    kill_and_go_on(stage, whole, tmp_path, lambda *more: arguments(data, tmp_path, *more, epochs=2))


def under_an_encoder(data: Path, out: Path, *more: str) -> list[str]:
    """Under a sentence encoder, over kept views, with classes, weights and pictures that are held out."""
    options = ["--freeze", "15", "--views", "2", "--held-out", "3", "--weight", "colours=1.5"]
    backbone = ["--backbone", str(data / "backbone.safetensors"), "--classes", str(data / "classes.txt")]
    return arguments(data, out, "--teacher", str(data / "encoder"), *options, *backbone, *more, epochs=2)


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run that nothing cut."""
    save_sentence(data / "encoder")
    torch.manual_seed(0)
    save_file(torchvision.models.mobilenet_v2(num_classes=3).state_dict(), data / "backbone.safetensors")
    (data / "classes.txt").write_text("red, crimson\ngreen\nsky blue, azure\n")
    out = tmp_path_factory.mktemp("taught")
    run_train(under_an_encoder(data, out))
    return out


def test_under_a_sentence_encoder_the_pictures_learn_first_and_then_the_texts(taught: Path) -> None:
    assert stages_of(taught) == ["image", "text", "language", "caption"]
    kept = {path.name.partition("-")[0] for path in (taught / "state").glob("*.npy")}
    assert kept == {"pixels", "bottom", "sentences", "classes"}


@pytest.mark.parametrize("stage", ["image", "text"])
def test_a_run_under_an_encoder_that_was_killed_goes_on_to_the_same_weights(
    data: Path, taught: Path, tmp_path: Path, stage: str
) -> None:
    kill_and_go_on(stage, taught, tmp_path, lambda *more: under_an_encoder(data, tmp_path, *more))


def test_labels_alone_teach_a_trained_model_new_names(data: Path, whole: Path, tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "source": "mine", "labels": [f"zyx{i}"], "split": "train"} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["--labels", str(tmp_path / "mine.jsonl"), "--label-images", str(data), "--device", "cpu"]
    args = ["--init", str(whole), *files, "--epochs", "2", "--threads", "1", "--out", str(tmp_path / "out")]
    run_train(args)
    assert stages_of(tmp_path / "out") == ["few"]
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "out"))
    changed = {name.partition(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"text"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == json.loads((whole / "config.json").read_text())


def test_views_are_kept_for_frozen_blocks_and_classes_told_by_an_encoder(data: Path, tmp_path: Path) -> None:
    for options, said in (
        (["--views", "2"], "--views keeps the output of frozen blocks; say how many with --freeze"),
        (["--classes", "x"], "--classes is told by a --teacher that only reads; name one, or leave it out"),
        (["--weight", "colours"], "--weight colours is no SOURCE=W with W above 0"),
        (["--weight", "colours=nan"], "--weight colours=nan is no SOURCE=W with W above 0"),
    ):
        result = CliRunner().invoke(train, arguments(data, tmp_path, *options))
        assert result.exit_code == 1
        assert said in result.output


def kill_and_go_on(stage: str, whole: Path, out: Path, args: Callable[..., list[str]]) -> None:
    shutil.copytree(whole, out, dirs_exist_ok=True)
    stages = stages_of(whole)
    for later in stages[stages.index(stage) :]:
        (out / f"state/{later}.pt").unlink()
    kill_in(stage, args("--save-every-s", "0"), out)
    run_train(args())
    assert weights_of(out) == weights_of(whole)
    assert (out / "config.json").read_text() == (whole / "config.json").read_text()


def kill_in(stage: str, args: list[str], out: Path) -> None:
    code = "import sys; from revln.cli.train import train; train(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not (out / f"state/{stage}.pt").is_file():  # written after each step, so this is within an epoch
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    state = torch.load(out / f"state/{stage}.pt", weights_only=True)
    assert (state["epoch"], state["step"]) < (2, 0)
