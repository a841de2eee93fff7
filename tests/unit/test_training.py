"""Training from end to end on eight drawn pictures, and the parts whose mistakes a run would hide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from revln.cli.evaluate import evaluate
from revln.cli.train import train
from revln.errors import ValidationFailed
from revln.models.base import Operation
from revln.models.captioner import Captioner
from revln.models.revln_family import load
from revln.models.tokenizer import train_tokenizer
from revln.training.captions import Prompter, caption_loss, nearest_captions
from revln.training.data import read_captions, read_extra_captions
from revln.training.features import view
from revln.training.joint import contrastive_loss

SIZES = {
    "image_size": 64, "dim": 32, "vocab_size": 320, "text_embedding": 16, "text_hidden": 24,
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


def run(data: Path, out: Path, epochs: int = 1, *more: str) -> str:
    files = {"data": "captions.jsonl", "images": ".", "extra-captions": "extra.tsv", "config": "sizes.json"}
    args = [part for name, file in files.items() for part in (f"--{name}", str(data / file))]
    for name in ("epochs", "text-epochs", "language-epochs", "caption-epochs"):
        args += [f"--{name}", str(epochs)]
    result = CliRunner().invoke(train, [*args, "--out", str(out), "--batch", "4", *more])
    assert result.exit_code == 0, result.output
    return result.output


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_a_run_yields_a_folder_that_loads_and_its_curves(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    model = load("tiny", tmp_path, "cpu")
    (vector,) = model.forward(Operation.EMBED_TEXT, [model.prepare(Operation.EMBED_TEXT, "a red square")])
    assert vector.shape == (32,)
    stages = [line.split(",")[0] for line in (tmp_path / "curves.csv").read_text().splitlines()]
    assert stages == ["stage", "text", "joint", "language", "caption"]
    assert (tmp_path / "MODEL_CARD.md").is_file()


def test_a_run_that_was_cut_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "whole", 2)
    # The limit lets no epoch begin: each call ends after writing what is there.
    run(data, tmp_path / "cut", 2, "--time-limit-s", "0.000001")
    assert weights(tmp_path / "cut") != weights(tmp_path / "whole")
    run(data, tmp_path / "cut", 2)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_run_that_is_done_is_not_run_again(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    before = weights(tmp_path)
    run(data, tmp_path)
    assert weights(tmp_path) == before
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 5


def test_eval_prints_one_json_object_with_every_figure(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    captions = str(data / "captions.jsonl")
    args = ["--model", str(tmp_path), "--data", captions, "--images", str(data), "--store", captions, "--json"]
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


def test_extra_captions_are_grouped_by_picture(data: Path) -> None:
    groups = read_extra_captions(data / "extra.tsv")
    assert len(groups) == 8
    assert groups[0] == ("some extra caption 0", "some extra caption 1")


def test_views_are_the_picture_its_mirror_image_and_repeatable_crops() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert view(image, 0, "a") is image
    assert np.array_equal(np.asarray(view(image, 1, "a")), np.asarray(image)[:, ::-1])
    first, again, other = view(image, 2, "a"), view(image, 2, "a"), view(image, 2, "b")
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert first.size != other.size
    assert view(Image.new("RGB", (1, 1)), 3, "a").size == (1, 1)


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
    captioner = Captioner(8, 4, vocab_size=50, positions=32, width=16, layers=1, heads=2, inner=16).eval()
    seen = captioner.look(torch.randn(2, 4, 8))
    prompts, targets = [[1, 7, 8, 9], [1, 7]], [[10, 11], [12, 13, 14, 15]]
    together = caption_loss(captioner, seen, prompts, targets)
    alone = [
        caption_loss(captioner, seen[i : i + 1], [prompts[i]], [targets[i]]) * (len(targets[i]) + 1) for i in (0, 1)
    ]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 8, abs=1e-5)


def test_a_pictures_own_captions_are_never_its_evidence() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 4)).astype(np.float32)
    owner = [i for i in range(6) for _ in range(3)]
    near = nearest_captions(images, images[owner], owner, 5)
    assert near.shape == (6, 5)
    assert all(owner[j] != i for i, row in enumerate(near) for j in row)
    scores = np.take_along_axis(images @ images[owner].T, near, axis=1)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_prompts_drop_their_evidence_now_and_then() -> None:
    prompter = Prompter(train_tokenizer(["a dog", "similar:", "this picture shows:"], 300), most=4, each=6)
    rng = np.random.default_rng(0)
    bare = prompter.tokenizer.prompt((), 6)
    share = np.mean([prompter(rng, ["a dog", "two dogs"]) == bare for _ in range(400)])
    assert 0.18 < share < 0.32
