"""Training from end to end on eight drawn pictures, and the parts whose mistakes a run would hide."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from revln.cli.average import average
from revln.cli.evaluate import evaluate
from revln.cli.train import train
from revln.errors import ValidationFailed
from revln.images import ImageLimits, decode_image
from revln.models.base import Operation
from revln.models.revln.card import RevlnConfig
from revln.models.revln.decoder import Captioner
from revln.models.revln.model import load
from revln.training.calibrate import evidence_threshold, match_thresholds
from revln.training.captions import caption_loss
from revln.training.contrast import contrastive_loss
from revln.training.curves import Curves
from revln.training.data import Pictures, read_captions, read_extra_captions
from revln.training.joint import without_some
from revln.training.metrics import Cider, tokenize
from revln.training.pixels import Augment, cache_pixels, may_be_mirrored
from revln.training.stage import Schedule, Stage, rng_of, run_stage
from revln.training.teacher import Seer, fitted_scale, teaching_loss
from tests import pictures
from tests.tiny_captioners import save_blip
from tests.tiny_models import save_clip, save_sentence

SIZES = {
    "image_size": 64, "trunk": "mobilenet_v2", "dim": 32, "vocab_size": 320, "text_embedding": 16, "text_hidden": 24,
    "caption_width": 32, "caption_layers": 2, "caption_inner": 64,
}  # fmt: skip
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "pink", "grey"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + i, 50), colour).save(folder / f"{i}.png")
        captions = [f"a {colour} square .", f"the picture is {colour}"]
        lines.append({"file": f"{i}.png", "split": "train", "captions": captions})
        lines.append({"file": f"{i}.png", "split": "dev", "captions": captions})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = [f"{i // 2}\t0\tsome extra caption {i}" for i in range(16)]
    (folder / "extra.tsv").write_text("image_id\tin_val2017\tcaption\n" + "\n".join(rows) + "\n")
    (folder / "sizes.json").write_text(json.dumps(SIZES))
    return folder


def arguments(data: Path, out: Path, epochs: int = 1, *more: str) -> list[str]:
    files = {"data": "captions.jsonl", "images": ".", "extra-captions": "extra.tsv", "config": "sizes.json"}
    args = [part for name, file in files.items() for part in (f"--{name}", str(data / file))]
    for name in ("epochs", "text-epochs", "language-epochs", "caption-epochs"):
        args += [f"--{name}", str(epochs)]
    return [*args, "--out", str(out), "--batch", "4", "--train-size", "32", "--threads", "1", "--device", "cpu", *more]


def run(data: Path, out: Path, epochs: int = 1, *more: str) -> str:
    result = CliRunner().invoke(train, arguments(data, out, epochs, *more))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing cut."""
    out = tmp_path_factory.mktemp("whole")
    run(data, out, 2)
    return out


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_a_run_yields_a_folder_that_loads_and_its_curves(whole: Path) -> None:
    model = load("tiny", whole, "cpu")
    (vector,) = model.forward(Operation.EMBED_TEXT, [model.prepare(Operation.EMBED_TEXT, "a red square")])
    assert vector.shape == (32,)
    stages = [line.split(",")[0] for line in (whole / "curves.csv").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["stage", "text", "joint", "language", "caption"]
    assert (whole / "curves.png").stat().st_size > 1000
    assert (whole / "MODEL_CARD.md").is_file()
    assert set(model.info.match_min_score or {}) == {"text", "image"}
    assert model.info.evidence_min_score is not None


def test_a_run_that_was_cut_goes_on_to_the_same_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    # The limit lets no step begin: each call ends after writing what is there.
    run(data, tmp_path, 2, "--time-limit-s", "0.000001")
    assert weights(tmp_path) != weights(whole)
    run(data, tmp_path, 2)
    assert weights(tmp_path) == weights(whole)


def _line(folder: Path, epochs: int, deadline: float = math.inf, poison: tuple[int, int] | None = None) -> torch.Tensor:
    """A stage of four steps an epoch that fits a line through random points; the weights that it leaves."""
    torch.manual_seed(0)
    line = torch.nn.Linear(3, 1)

    def batch(epoch: int, step: int) -> torch.Tensor:
        points = torch.from_numpy(rng_of(epoch, step).normal(size=(8, 3))).float()
        return points * torch.nan if (epoch, step) == poison else points

    def loss(points: torch.Tensor) -> torch.Tensor:
        return ((line(points) - points.sum(dim=1, keepdim=True)) ** 2).mean()

    groups = [{"params": list(line.parameters()), "lr": 0.1}]
    folder.mkdir(exist_ok=True)
    schedule = Schedule(0, torch.device("cpu"), False, folder, math.inf, 5, deadline)
    run_stage(Stage("line", epochs, 4, groups, {"line": line}, batch, loss), schedule, Curves(folder))
    return line.weight.detach().clone()


def test_a_stage_that_its_deadline_cuts_within_an_epoch_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _line(tmp_path / "whole", 3)
    with monkeypatch.context() as patch:
        clock = count()
        patch.setattr("revln.training.stage.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
        cut = _line(tmp_path / "cut", 3, deadline=15.0)
    saved = torch.load(tmp_path / "cut/line.pt", weights_only=True)
    assert saved["epoch"] > 0
    assert 0 < saved["step"] < 4
    assert not torch.equal(cut, whole)
    assert torch.equal(_line(tmp_path / "cut", 3), whole)


def test_a_loss_that_is_no_number_ends_the_run_and_costs_nothing_of_what_was_saved(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="stage line became nan at epoch 2, step 3; train with a smaller"):
        _line(tmp_path, 3, poison=(1, 2))
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["best"]["line"].values())


def test_a_folder_of_another_run_is_refused_and_not_mixed_with_it(data: Path, whole: Path, tmp_path: Path) -> None:
    for epochs, options, said in (
        (2, ["--seed", "7"], "with --seed 0, not 7; name another --out"),
        (3, [], "text.pt is of a run with epochs 2, not 3"),
        (2, ["--teacher", str(whole)], f"with --teacher not given, not {whole}"),
    ):
        result = CliRunner().invoke(train, arguments(data, whole, epochs, *options))
        assert result.exit_code == 1
        assert said in result.output
    other = tmp_path / "captions.jsonl"
    other.write_text((data / "captions.jsonl").read_text().replace("a red square", "a big red square"))
    given = str(data / "captions.jsonl")
    result = CliRunner().invoke(train, [str(other) if part == given else part for part in arguments(data, whole, 2)])
    assert re.search(r"with --data of sha256 \w{12}, not of sha256 \w{12};", result.output)
    moved = tmp_path / "moved.jsonl"
    shutil.copy(data / "captions.jsonl", moved)
    before = weights(whole)
    args = [str(moved) if part == given else part for part in arguments(data, whole, 2)]
    assert CliRunner().invoke(train, args).exit_code == 0
    assert weights(whole) == before


@pytest.mark.gpu
@pytest.mark.parametrize("flag", ["--bf16", "--fp32"])
def test_all_stages_run_on_a_gpu_in_either_precision(data: Path, tmp_path: Path, flag: str) -> None:
    run(data, tmp_path, 1, "--device", "cuda", flag)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())


def test_extra_captions_without_pairs_teach_the_decoder_only(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "\n".join(f"{i}\tcaption number {i}" for i in range(8))
    (tmp_path / "extra.tsv").write_text("image_id\tcaption\n" + rows + "\n")
    run(data, tmp_path / "out", 1, "--extra-captions", str(tmp_path / "extra.tsv"))
    stages = [line.split(",")[0] for line in (tmp_path / "out/curves.csv").read_text().splitlines()]
    assert stages == ["stage", "joint", "language", "caption"]
    assert "has two captions" in caplog.text


@pytest.mark.parametrize("stage", ["joint", "caption"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(data: Path, whole: Path, tmp_path: Path, stage: str) -> None:
    if stage == "caption":  # the stages before it are those of the other run
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        (tmp_path / f"state/{stage}.pt").unlink()
    code = "import sys; from revln.cli.train import train; train(sys.argv[1:])"
    args = arguments(data, tmp_path, 2, "--save-every-s", "0")
    process = subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 150
        while not (tmp_path / f"state/{stage}.pt").is_file():  # written after each step, so this is within an epoch
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    state = torch.load(tmp_path / f"state/{stage}.pt", weights_only=True)
    assert (state["epoch"], state["step"]) < (2, 0)
    run(data, tmp_path, 2)
    assert weights(tmp_path) == weights(whole)


def test_a_run_that_is_done_is_not_run_again(data: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run(data, tmp_path, 2)
    assert weights(tmp_path) == weights(whole)
    assert (tmp_path / "curves.csv").read_text() == (whole / "curves.csv").read_text()


def run_from(start: Path, data: Path, out: Path, epochs: int, *more: str) -> Path:
    args = arguments(data, out, epochs, "--init", str(start), *more)
    sizes = args.index("--config")
    result = CliRunner().invoke(train, [*args[:sizes], *args[sizes + 2 :]])
    assert result.exit_code == 0, result.output
    return out


def test_a_run_goes_on_from_a_trained_model(data: Path, whole: Path, tmp_path: Path) -> None:
    same = run_from(whole, data, tmp_path / "same", 0, "--license", "another")
    further = run_from(whole, data, tmp_path / "further", 1, "--license", "another")
    assert weights(same) == weights(whole)
    assert weights(further) != weights(whole)
    assert (further / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    stages = [line.split(",")[0] for line in (further / "curves.csv").read_text().splitlines()]
    assert stages == ["stage", "joint", "caption"]
    assert load("tiny", further, "cpu").info.license == "another"


def test_a_model_to_go_on_from_and_other_sizes_contradict_each_other(data: Path, whole: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(train, arguments(data, tmp_path, 1, "--init", str(whole)))
    assert result.exit_code == 1
    assert "leave out --backbone and --config" in result.output


def test_the_mean_of_models_has_their_mean_weights_and_is_trained_further(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    runs = [run_from(whole, data, tmp_path / f"run{seed}", 1, "--seed", str(seed)) for seed in (1, 2)]
    out = tmp_path / "mean"
    result = CliRunner().invoke(average, [*map(str, [whole, *runs]), "--out", str(out)])
    assert result.exit_code == 0, result.output
    mean, *of = (load_file(folder / "model.safetensors") for folder in (out, whole, *runs))
    assert set(mean) == set(of[0])
    for name, tensor in mean.items():
        expected = torch.stack([one[name].float() for one in of]).mean(dim=0)
        torch.testing.assert_close(tensor.float(), expected, rtol=2e-3, atol=1e-4)
    name = "image.pool.value.weight"
    assert not torch.equal(of[1][name], of[2][name])  # else every mean would do
    assert "mean of the weights of" in (out / "MODEL_CARD.md").read_text()
    assert load("tiny", run_from(out, data, tmp_path / "refitted", 1), "cpu").info.match_min_score


def test_a_run_learns_from_teachers_of_any_family(data: Path, whole: Path, tmp_path: Path) -> None:
    """Eight drawn colours and random weights teach nothing; that their answers reach the weights is seen."""
    clip, sentence = str(save_clip(tmp_path / "clip")), str(save_sentence(tmp_path / "sentence"))
    plain = run_from(whole, data, tmp_path / "plain", 1)
    seen = run_from(whole, data, tmp_path / "seen", 1, "--teacher", clip, "--teacher", str(whole))
    read = run_from(whole, data, tmp_path / "read", 1, "--teacher", sentence)
    assert len({weights(one) for one in (plain, seen, read)}) == 3
    none = run_from(whole, data, tmp_path / "none", 1, "--teacher", clip, "--teaching", "0")
    assert weights(none) == weights(plain)
    again = run_from(whole, data, tmp_path / "again", 1, "--teacher", clip, "--teacher", str(whole))
    assert weights(again) == weights(seen)


def test_a_model_that_embeds_no_texts_is_no_teacher(data: Path, whole: Path, tmp_path: Path) -> None:
    blip = save_blip(tmp_path / "blip")
    result = CliRunner().invoke(train, arguments(data, tmp_path / "out", 1, "--teacher", str(blip)))
    assert result.exit_code == 1
    assert "blip does not embed texts, so it cannot be a --teacher" in result.output


def test_a_teacher_sees_the_students_view_and_reads_each_caption_once(
    data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("tiny", whole, "cpu")
    forward, calls = model.forward, []

    def counted(operation: Operation, batch: Sequence[Any]) -> Sequence[Any]:
        calls.append((operation, len(batch)))
        return forward(operation, batch)

    def vector(operation: Operation, item: Any) -> torch.Tensor:
        return forward(operation, [model.prepare(operation, item)])[0]

    monkeypatch.setattr(model, "forward", counted)
    dev = read_captions(data / "captions.jsonl", "dev")
    teacher = Seer(model, dev, Pictures(data))
    picture = Pictures(data)[dev[2].file].resize((64, 64))
    view = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    calls.clear()
    asked = ["a red square", "grey", "a red square"]
    found = teacher.answers(view, asked)
    expected = torch.stack([vector(Operation.EMBED_TEXT, text) for text in asked])
    cosine = vector(Operation.EMBED_IMAGE, picture)[None] @ expected.T
    scale = found[0, 0] / cosine[0, 0]
    assert scale > 0
    torch.testing.assert_close(found, scale * cosine, atol=1e-4, rtol=1e-4)
    assert torch.equal(teacher.answers(view, asked), found)
    assert calls == [(Operation.EMBED_IMAGE, 1), (Operation.EMBED_TEXT, 2), (Operation.EMBED_IMAGE, 1)]


def test_what_a_teacher_says_pulls_the_students_answers_to_it() -> None:
    """The student has other dimensions than its teachers."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize

    def logits(scale: float, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return scale * unit(images) @ unit(texts).T

    wanted = [logits(scale, torch.randn(4, 6), torch.randn(9, 6)) for scale in (5.0, 20.0)]
    images, texts = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)

    def loss(teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        return teaching_loss(unit(images), unit(texts), torch.tensor(10.0), teachers)

    assert loss([logits(10.0, images.detach(), texts.detach())]).item() == pytest.approx(0, abs=1e-6)
    optimizer = torch.optim.Adam([images, texts], lr=0.05)
    losses = []
    for _ in range(300):
        value = loss(wanted)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.05 * losses[0]
    mean = torch.stack([one.softmax(dim=1) for one in wanted]).mean(dim=0)
    torch.testing.assert_close(logits(10.0, images, texts).softmax(dim=1), mean, atol=0.1, rtol=0)


def test_a_teachers_scale_is_that_of_its_doubt() -> None:
    rng = np.random.default_rng(0)
    pictures, noise = (torch.from_numpy(rng.normal(size=(500, 8))).float() for _ in range(2))
    pictures = torch.nn.functional.normalize(pictures, dim=1)

    def scale_at(distance: float) -> float:
        captions = torch.nn.functional.normalize(pictures + distance * noise, dim=1)
        got = fitted_scale(pictures, captions)
        losses = [
            float(torch.nn.functional.cross_entropy(scale * captions @ pictures.T, torch.arange(500)))
            for scale in (got, got / 1.3, got * 1.3)
        ]
        assert losses[0] == min(losses)
        return got

    assert scale_at(0.2) > 1.5 * scale_at(0.4)  # the nearer captions lie to their pictures, the surer it may be


def test_the_mean_is_used_as_the_first_of_its_models(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    config = json.loads((whole / "config.json").read_text())
    used = {"mirror": False, "caption_no_repeat_ngram_size": 3, "caption_cosine": 0.5}
    (other / "config.json").write_text(json.dumps(config | used))
    for first, second in ((whole, other), (other, whole)):
        out = tmp_path / f"{first.name}-first"
        result = CliRunner().invoke(average, [str(first), str(second), "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert RevlnConfig.read(out) == RevlnConfig.read(first)


def test_models_that_have_no_mean_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    sizes, words = tmp_path / "sizes", tmp_path / "words"
    (tmp_path / "sizes.json").write_text(json.dumps({**SIZES, "text_hidden": 32}))
    run(data, sizes, 0, "--config", str(tmp_path / "sizes.json"))
    shutil.copytree(whole, words)
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    (words / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    for others, said in (([sizes], "other sizes"), ([words], "other words"), ([], "two models or more")):
        result = CliRunner().invoke(average, [*map(str, [whole, *others]), "--out", str(tmp_path / "mean")])
        assert result.exit_code == 1
        assert said in result.output
    assert not (tmp_path / "mean").exists()


def test_a_caption_loses_as_many_words_as_it_is_told_to_and_never_all() -> None:
    rng, row = np.random.default_rng(0), list(range(10, 40))
    assert without_some(rng, row, 0.0) == row
    kept = [without_some(rng, row, 0.2) for _ in range(400)]
    assert 0.78 < sum(map(len, kept)) / (400 * len(row)) < 0.82
    assert all(some == sorted(some) and set(some) <= set(row) for some in kept)
    assert all(without_some(rng, [7], 0.9) == [7] for _ in range(20))


def test_eval_prints_one_json_object_with_every_figure(data: Path, whole: Path) -> None:
    captions = str(data / "captions.jsonl")
    args = ["--model", str(whole), "--data", captions, "--images", str(data), "--store", captions, "--json"]
    result = CliRunner().invoke(evaluate, [*args, "--limit", "4", "--examples", "2"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n_images"] == 4
    for side in ("i2t", "t2i"):
        assert set(report[side]) == {"r1", "r5", "r10", "median_rank"}
    for kind in ("caption", "caption_no_retrieval"):
        assert set(report[kind]) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    assert report["seconds"] >= 0
    assert len(report["examples"]) == 2


def test_missing_data_is_named_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(train, ["--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "none.jsonl is missing" in result.output
    result = CliRunner().invoke(evaluate, ["--model", "no-such-model"])
    assert result.exit_code == 1
    assert "no model 'no-such-model'" in result.output


def test_a_malformed_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"file": "a", "split": "train", "captions": ["x"]}\n{"file": 3}\n')
    with pytest.raises(ValidationFailed, match="line 2"):
        read_captions(path, "train")
    path.write_text('{"file": "a", "split": "train", "captions": ["x"]}\n')
    with pytest.raises(ValidationFailed, match="'dev'"):
        read_captions(path, "dev")


FORMS = {
    "a.token": "a.jpg#0\ta dog runs .\na.jpg#1\ta brown dog\nb.jpg#0\ta cat\n",
    "k.json": json.dumps({"images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog runs ."}, {"raw": "a brown dog"}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "a cat"}]},
        {"filename": "c.jpg", "split": "val", "sentences": [{"raw": "a bird"}]},
    ]}),
    "coco.json": json.dumps({
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "no.jpg"}],
        "annotations": [{"image_id": 7, "caption": "a dog runs ."}, {"image_id": 8, "caption": "a cat"},
                        {"image_id": 7, "caption": "a brown dog"}],
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_captions_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name])
    examples = read_captions(tmp_path / name, "train")
    assert [(e.file, e.captions) for e in examples] == [
        ("a.jpg", ("a dog runs .", "a brown dog")),
        ("b.jpg", ("a cat",)),
    ]


@pytest.mark.parametrize(("text", "said"), [
    ("a.jpg a dog\n", "line 1: needs 'file#number"),
    ('{"images": 3}', "no list 'images'"),
    ('{"images": [{"filename": "a"}]}', r"images\[0\]: needs"),
    ('{"images": [], "annotations": [{"caption": "x"}]}', r"annotations\[0\]: needs"),
    ('{"images":\n[1', "neither JSONL"),
    ('{"file": "a", "split": "train", "captions": []}', "a has no captions"),
    ('\n{"file": "a", "split": "train", "captions": "a dog"}', "line 2: captions must be a list of texts, not 'a dog'"),
    ('{"file": "a", "split": "train", "captions": ["x", " "]}', r"line 1: captions\[1\] must be text .* not ' '"),
    ('{"file": "a", "split": "train", "captions": [3]}', r"line 1: captions\[0\] must be text .* not 3"),
    ('{"file": 3, "split": "train", "captions": ["x"]}', "line 1: file must be text that is not blank, not 3"),
    ('{"file": "a", "split": null, "captions": ["x"]}', "line 1: split must be text that is not blank, not None"),
    ("a.jpg#0\ta dog\na.jpg#1\t \n", "line 2: needs 'file#number"),
    ('{"images": [{"filename": "a", "split": null, "sentences": []}]}', r"images\[0\]: split must be text .* not None"),
    ('{"images": [{"filename": "a", "split": "val", "sentences": [{"raw": ""}]}]}', r"sentences\[0\]\.raw must be"),
    ('{"images": [], "annotations": [{"image_id": 1, "caption": null}]}', r"annotations\[0\]: caption must be text"),
    ('{"images": [{"id": 1, "file_name": 3}], "annotations": [{"image_id": 1, "caption": "x"}]}',
     r"images\[0\]: file_name must be text"),
])  # fmt: skip
def test_malformed_captions_are_named_by_their_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValidationFailed, match=said):
        read_captions(tmp_path / "x", "train")


def test_captions_that_are_no_utf8_text_are_named(tmp_path: Path) -> None:
    packed, latin = tmp_path / "captions.jsonl.gz", tmp_path / "captions.jsonl"
    packed.write_bytes(gzip.compress(b'{"file": "a", "split": "train", "captions": ["x"]}\n'))
    line = '{"file": "a", "split": "train", "captions": ["CAPTION"]}\n'
    # The second fault lies beyond what is read to see which form it is.
    latin.write_bytes((line * 9999 + line.replace("CAPTION", "ein Mädchen")).encode("latin-1"))
    for path in (packed, latin):
        with pytest.raises(ValidationFailed, match=rf"{re.escape(str(path))} is not UTF-8 text .*; unpack it, or save"):
            read_captions(path, "train")


def test_extra_captions_that_are_damaged_or_no_utf8_text_are_named(tmp_path: Path) -> None:
    whole = "image_id\tcaption\n" + "".join(f"{i}\tein Mädchen {i}\n" for i in range(99))
    packed = gzip.compress(whole.encode())
    for name, content, said in (
        ("a.tsv", whole.encode("latin-1"), "is not UTF-8 text"),
        ("b.tsv", packed, "is not UTF-8 text"),
        ("c.tsv.gz", gzip.compress(whole.encode("latin-1")), "is not UTF-8 text"),
        ("d.tsv.gz", packed[:-40], "cannot be read .*; give an undamaged TSV"),
        ("e.tsv.gz", packed[:40] + b"\xff" * 9 + packed[49:], "cannot be read"),
        ("f.tsv.gz", whole.encode(), "cannot be read .*as .gz if it is gzip"),
        ("g.tsv", b"image_id\tcaption\n1\t" + b"x" * 200_000, "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValidationFailed, match=f"{re.escape(str(tmp_path / name))} {said}"):
            read_extra_captions(tmp_path / name)


def test_captions_without_splits_need_a_file_for_dev(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.token").write_text("0.png#0\ta red square\n")
    args = ["--data", str(tmp_path / "a.token"), "--images", str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(train, args)
    assert result.exit_code == 1
    assert "--data-dev" in result.output


def test_extra_captions_are_grouped_by_picture(data: Path) -> None:
    groups = read_extra_captions(data / "extra.tsv")
    assert len(groups) == 8
    assert groups[0] == ("some extra caption 0", "some extra caption 1")


def test_a_view_is_the_whole_picture_when_nothing_is_cut_and_its_mirror_image_where_that_is_true() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    augment, cpu = Augment(8, least=1.0, colour=0.0), torch.device("cpu")
    plain = torch.from_numpy(images).float() / 127.5 - 1
    rng = np.random.default_rng(1)
    straight = augment.draw(rng, images, np.zeros(64, dtype=bool))
    # An aspect other than one still cuts a little; without it a view is the picture.
    straight.frame[:] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert torch.allclose(augment(straight, cpu), plain, atol=1e-4)
    turned = augment.draw(rng, images, np.ones(64, dtype=bool))
    mirrored = turned.frame[:, 0, 0] < 0
    assert 16 < int(mirrored.sum()) < 48
    assert (augment.draw(rng, images, np.zeros(64, dtype=bool)).frame[:, 0, 0] > 0).all()
    turned.frame[:] = torch.tensor([[-1.0, 0, 0], [0, 1.0, 0]])
    assert torch.allclose(augment(turned, cpu), plain.flip(3), atol=1e-4)


def test_a_view_stays_within_its_picture() -> None:
    images = np.zeros((200, 3, 4, 4), dtype=np.uint8)
    frame = Augment(4).draw(np.random.default_rng(0), images, np.ones(200, dtype=bool)).frame
    reach = frame[:, :, :2].abs().sum(dim=2) + frame[:, :, 2].abs()  # (200, 2)
    assert (reach <= 1 + 1e-6).all()
    area = (frame[:, 0, 0] * frame[:, 1, 1]).abs()
    assert (area > 0.5).all()


def test_a_picture_whose_caption_names_a_side_is_not_mirrored() -> None:
    assert may_be_mirrored(["a dog runs on grass", "two brighter lights"])
    assert not may_be_mirrored(["a dog runs", "the man on the left waves"])
    assert not may_be_mirrored(["A sign reads STOP"])


def test_decoded_pictures_are_what_the_served_model_prepares(data: Path, tmp_path: Path) -> None:
    files = ["0.png", "3.png"]
    cached = cache_pixels(files, Pictures(data), 16, tmp_path)
    assert cached.shape == (2, 3, 16, 16)
    assert (cached[0] == np.array([255, 0, 0], dtype=np.uint8)[:, None, None]).all()
    assert np.array_equal(cached, cache_pixels(files, Pictures(data), 16, tmp_path))
    assert len(list(tmp_path.glob("pixels-*.npy"))) == 1


def test_pictures_are_decoded_as_the_service_does_from_a_folder_and_from_a_zip(tmp_path: Path) -> None:
    made = {
        "turned.jpg": pictures.rotated_jpeg(6),
        "clear.png": pictures.transparent_png(),
        "deep.png": pictures.gray16_png(),
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for name, content in made.items():
            (tmp_path / name).write_bytes(content)
            packed.writestr(name, content)
    for source in (Pictures(tmp_path), Pictures(tmp_path / "all.zip")):
        for name, content in made.items():
            assert source[name].tobytes() == decode_image(content, ImageLimits()).tobytes()
        assert source["turned.jpg"].size == (64, 48)


def test_pictures_that_cannot_be_read_are_named_with_the_way_out(tmp_path: Path) -> None:
    bad = {
        "bomb.png": (pictures.bomb_png(), "144,000,000 pixels; the limit is 40,000,000"),
        "cut.jpg": (pictures.truncated_jpeg(), "cannot be decoded"),
        "a.tiff": (pictures.tiff(), "revln reads JPEG, PNG"),
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for name, (content, _) in bad.items():
            (tmp_path / name).write_bytes(content)
            packed.writestr(name, content)
        packed.writestr("rot.png", pictures.png())
    damaged = (tmp_path / "all.zip").read_bytes().replace(pictures.png(), pictures.png()[:-1] + b"x")
    (tmp_path / "all.zip").write_bytes(damaged)
    bad |= {"none.png": (b"", "none.png"), "rot.png": (b"", "rot.png"), "\0.png": (b"", "")}
    for folder in (tmp_path, tmp_path / "all.zip"):
        for name, (_, said) in bad.items():
            place = re.escape(f"{name} cannot be read from {folder}: ")
            with pytest.raises(ValidationFailed, match=f"{place}.*{said}"):
                Pictures(folder)[name]
        with pytest.raises(ValidationFailed, match="leave it out of the captions"):
            Pictures(folder)["none.png"]


def test_images_that_are_neither_folder_nor_zip_are_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(b"no zip" * 99)
    with pytest.raises(ValidationFailed, match=r"images.tar is no zip .*; give --images a folder, or an undamaged zip"):
        Pictures(tmp_path / "images.tar")


def test_a_picture_that_was_replaced_in_place_is_decoded_anew(tmp_path: Path) -> None:
    file = tmp_path / "pictures/in/a.png"
    file.parent.mkdir(parents=True)
    source = Pictures(tmp_path / "pictures")
    for second, (colour, pixel) in enumerate({"red": [255, 0, 0], "blue": [0, 0, 255]}.items()):
        Image.new("RGB", (8, 8), colour).save(file)
        os.utime(file, (second, second))  # a file system's clock may be too coarse to tell the two apart
        assert cache_pixels(["in/a.png"], source, 8, tmp_path)[0, :, 0, 0].tolist() == pixel
    with pytest.raises(ValidationFailed, match=r"in/b\.png cannot be read"):
        cache_pixels(["in/b.png"], source, 8, tmp_path)


def test_two_runs_that_decode_into_one_folder_at_once_both_get_whole_pictures(data: Path, tmp_path: Path) -> None:
    files = [f"{i}.png" for i in range(len(COLOURS))]

    class Meanwhile(Pictures):
        """Half way through the pictures, another run decodes the same ones."""

        def __getitem__(self, file: str) -> Image.Image:
            if file == files[4]:
                cache_pixels(files, Pictures(data), 16, tmp_path)
            return super().__getitem__(file)

    mine = cache_pixels(files, Meanwhile(data), 16, tmp_path)
    assert np.array_equal(mine, cache_pixels(files, Pictures(data), 16, tmp_path / "alone"))
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".npy"]


def test_a_decoding_that_fails_leaves_no_file(data: Path, tmp_path: Path) -> None:
    class Failing(Pictures):
        def __getitem__(self, file: str) -> Image.Image:
            raise ValidationFailed(f"the picture {file} cannot be read")

    with pytest.raises(ValidationFailed, match=r"0\.png"):
        cache_pixels(["0.png"], Failing(data), 16, tmp_path)
    assert not list(tmp_path.iterdir())


def test_cider_of_a_caption_is_higher_the_more_it_says_what_others_do_not() -> None:
    corpus = [[tokenize(text) for text in texts] for texts in (["a red dog runs"], ["a cat sits"], ["a cat jumps"])]
    scorer = Cider(corpus)
    assert scorer.of(tokenize("a red dog runs"), corpus[0]) == pytest.approx(10.0)
    assert scorer.of(tokenize("a cat sits"), corpus[0]) < scorer.of(tokenize("a dog runs"), corpus[0])


def test_thresholds_let_one_unrelated_item_in_a_hundred_pass() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    limits = match_thresholds(images, images, range(200))
    others = images @ images.T
    np.fill_diagonal(others, -1)
    assert (others > limits["text"]).mean() == pytest.approx(0.01, abs=0.002)
    assert limits["image"] == pytest.approx(limits["text"], abs=1e-3)
    nearest = (images[:100] @ images[100:].T).max(axis=1)
    assert 0 <= (nearest < evidence_threshold(images[:100], images[100:])).sum() <= 2


def test_captions_of_one_picture_are_not_each_others_negatives() -> None:
    unit = torch.nn.functional.normalize
    images, owner = unit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1), torch.tensor([0, 0, 1])
    near = unit(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]), dim=1)
    scale = torch.tensor(20.0, requires_grad=True)
    loss = contrastive_loss(images, near, owner, scale, hardest=1.0)
    torch.autograd.backward(loss)
    # Were the first two negatives of one another, each would cost log 2.
    assert loss.item() < 0.01
    assert scale.grad is not None
    assert torch.isfinite(scale.grad)


def test_caption_loss_is_that_of_each_caption_alone() -> None:
    torch.manual_seed(0)
    captioner = Captioner(
        8, 4, vocab_size=50, positions=32, width=16, layers=1, heads=2, inner=16, dim=6, vector_tokens=2
    ).eval()
    seen = captioner.look(torch.randn(2, 4, 8), torch.randn(2, 6))
    prompts, targets = [[1, 7, 8, 9], [1, 7]], [[10, 11], [12, 13, 14, 15]]
    together = caption_loss(captioner, seen, prompts, targets)
    alone = [
        caption_loss(captioner, seen[i : i + 1], [prompts[i]], [targets[i]]) * (len(targets[i]) + 1) for i in (0, 1)
    ]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 8, abs=1e-5)
