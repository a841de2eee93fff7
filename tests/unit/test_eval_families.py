"""`revln eval` on models that only embed, or only caption; by folder, and by the operator's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from bench import ablations
from revln.cli.average import average
from revln.cli.evaluate import evaluate, model_folder
from revln.cli.train import train
from revln.errors import ModelUnavailable
from revln.models.registry import load_folder
from revln.models.revln.card import RevlnConfig
from revln.training.data import Example
from revln.training.evaluation.running import embed_texts
from revln.training.evaluation.stores import Store
from revln.training.options import TrainOptions
from revln.training.told import hangs_on
from tests.tiny_captioners import save_vit_gpt2
from tests.tiny_models import photo, save_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(4):
        photo(i).save(folder / f"{i}.png")
        lines += [
            {"file": f"{i}.png", "split": split, "captions": [f"picture {i}", "a b c"]} for split in ("train", "dev")
        ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_eval_measures_what_a_model_does_and_drops_evidence_that_is_too_far(
    data: Path, tmp_path: Path, small_checkpoint: Path
) -> None:
    captions = str(data / "captions.jsonl")

    def report(model: Path, *more: str) -> dict[str, Any]:
        args = ["--model", str(model), "--data", captions, "--images", str(data), "--json", "--limit", "3", *more]
        result = CliRunner().invoke(evaluate, args)
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    clip, captioner = save_clip(tmp_path / "clip"), save_vit_gpt2(tmp_path / "vit-gpt2")
    found = report(clip, "--store", captions)
    assert found["i2t"]["r10"] > 0
    assert found["caption"] is found["caption_no_retrieval"] is None

    found = report(captioner, "--store", captions, "--retriever", str(clip))
    assert found["i2t"] is found["t2i"] is None
    assert found["with_evidence"] == 3
    assert set(found["caption"]) == set(found["caption_no_retrieval"])
    refused = CliRunner().invoke(
        evaluate, ["--model", str(captioner), "--data", captions, "--images", str(data), "--store", captions]
    )
    assert refused.exit_code == 1
    assert "--retriever" in refused.output

    far = tmp_path / "far"
    shutil.copytree(small_checkpoint, far)
    config = json.loads((far / "config.json").read_text())
    (far / "config.json").write_text(json.dumps(config | {"evidence_min_score": 1.0}))
    found = report(far, "--store", captions)
    assert found["with_evidence"] == 0
    assert found["caption"] == found["caption_no_retrieval"]


def ask(data: Path, *more: str) -> Result:
    captions = str(data / "captions.jsonl")
    return CliRunner().invoke(evaluate, ["--data", captions, "--images", str(data), "--json", "--limit", "2", *more])


def name_models(patch: pytest.MonkeyPatch, **models: dict[str, str]) -> None:
    patch.setenv("REVLN_MODELS", json.dumps(models))


def save_cnn(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18().state_dict(), folder / "model.safetensors")
    return folder


def test_eval_knows_the_operators_names_before_folders(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, captioner = save_clip(tmp_path / "clip"), save_vit_gpt2(tmp_path / "vit-gpt2")
    name_models(monkeypatch, mine={"source": str(clip), "device": "cuda:7"}, teller={"source": str(captioner)})
    monkeypatch.chdir(tmp_path)
    shutil.copytree(captioner, tmp_path / "mine")

    found = ask(data, "--model", "mine")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["model"] == "mine"
    assert json.loads(found.stdout)["i2t"] is not None  # the folder of this name only captions
    assert json.loads(ask(data, "--model", "./mine").stdout)["i2t"] is None

    store = ["--store", str(data / "captions.jsonl"), "--retriever", "mine"]
    assert json.loads(ask(data, "--model", "teller", *store).stdout)["with_evidence"] == 2
    assert model_folder("mine") == clip.resolve()

    neither = ask(data, "--model", "nobody")
    assert neither.exit_code == 1
    assert "no model 'nobody': neither a name of REVLN_MODELS (mine, revln-tiny, teller) nor a folder" in neither.output


def test_eval_says_that_nothing_of_a_cnn_can_be_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_models(monkeypatch, net={"source": str(save_cnn(tmp_path / "net")), "family": "cnn:resnet18"})
    found = ask(data, "--model", "net", "--store", str(data / "captions.jsonl"))
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["i2t"] is report["t2i"] is report["caption"] is report["caption_no_retrieval"] is None
    assert "nothing was measured: net does embed_image; Recall@K takes both" in found.stderr
    with pytest.raises(ModelUnavailable, match="family cnn:resnet18, which only embeds pictures"):
        model_folder("net")


@pytest.mark.parametrize(
    ("there", "device", "said"),
    [
        (0, "cuda", "--device cuda is not there: this machine has no CUDA device that works"),
        (2, "cuda:2", "--device cuda:2 is not there: this machine has cuda:0 to cuda:1"),
        (2, "gpu", "--device gpu is not there"),
        (2, "cuda:one", "--device cuda:one is not there"),
    ],
)
def test_a_device_that_is_not_there_is_told_by_its_option(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, device: str, said: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    out = tmp_path / "out"
    for result in (
        ask(data, "--device", device),
        CliRunner().invoke(train, ["--data", str(data / "captions.jsonl"), "--out", str(out), "--device", device]),
    ):
        assert result.exit_code == 1
        assert said in result.output
        assert "REVLN_MODELS" not in result.output
    assert not out.exists()


def test_eval_takes_the_device_that_train_takes_by_itself(
    data: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = ask(data, "--model", str(small_checkpoint), "--device", "auto", "--no-captions")
    assert result.exit_code == 0, result.output


def test_a_pictures_own_captions_are_no_evidence_where_a_small_store_has_few_others(tmp_path: Path) -> None:
    clip = load_folder(save_clip(tmp_path / "clip"), "cpu")
    assert clip.info.evidence_min_score is None
    store = [Example("0.png", ("a", "b c", "c"), "train"), Example("1.png", ("picture", "a b"), "train")]
    found = Store("small", store, clip).evidence(embed_texts(clip, ["a", "b"]), store)
    assert [{each.text for each in shown} for shown in found] == [{"picture", "a b"}, {"a", "b c", "c"}]
    assert all(np.isfinite(each.score) for shown in found for each in shown)


def changed(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_a_mean_names_the_sizes_that_differ_and_joins_the_terms(tmp_path: Path, small_checkpoint: Path) -> None:
    first = changed(small_checkpoint, tmp_path / "first", license="MIT; CC BY 4.0")
    used = {"max_evidence": 2, "evidence_tokens": 10, "prefix_tokens": 16, "text_tokens": 32}
    other = changed(small_checkpoint, tmp_path / "other", license="CC BY 4.0", **used)
    third = changed(small_checkpoint, tmp_path / "third", license="research only")
    result = CliRunner().invoke(average, [*map(str, (first, other, third)), "--out", str(tmp_path / "mean")])
    assert result.exit_code == 0, result.output
    mean = RevlnConfig.read(tmp_path / "mean")
    assert mean.license == "MIT; CC BY 4.0; research only"
    assert mean.license in (tmp_path / "mean/MODEL_CARD.md").read_text()
    assert mean.max_evidence == 4

    apart = changed(small_checkpoint, tmp_path / "apart", caption_heads=2, mirror=False)
    result = CliRunner().invoke(average, [str(first), str(apart), "--out", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "other sizes" in result.output
    assert ": caption_heads 2, not 4; only equal" in result.output


def test_an_ablation_is_measured_again_once_it_was_told_otherwise_and_leaves_out_what_it_names(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(small_checkpoint, whole)
    (whole / "eval.json").write_text('{"i2t": "of an older revln"}')
    calls: list[list[str]] = []

    def revln(arguments: list[str]) -> str:
        calls.append(list(arguments))
        return json.dumps({"number": len(calls)})

    monkeypatch.setattr("bench.ablations._revln", revln)
    plain, without = (next(one for one in ablations.VARIANTS if one.name.startswith(s)) for s in ("whole", "no COCO"))
    numbers = []
    for options in ([], [], ["--epochs", "4"]):
        command = ablations._command(whole, plain, options)
        numbers.append(ablations._evaluate(whole, command)["number"])
    assert numbers == [1, 1, 2]
    assert "--extra-captions" in command
    assert "--extra-captions" not in ablations._command(tmp_path / "without", without, [])


def test_an_ablation_takes_over_the_stages_that_its_change_does_not_touch_and_they_are_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.ablations._DATA", tmp_path)
    files = ("mobilenet_v2/mobilenet_v2_imagenet1001.safetensors", "coco_captions/captions.tsv.gz")
    for name in (*files, "flickr8k/captions.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    whole, stages = tmp_path / "whole", ("text", "joint", "language", "caption")
    (whole / "state").mkdir(parents=True)
    for name in ("tokenizer.json", *(f"state/{stage}.pt" for stage in stages)):
        (whole / name).write_text(name)

    def told(variant: ablations.Variant, stage: str) -> dict[str, str]:
        command = ablations._command(whole, variant, [])
        return hangs_on(TrainOptions(**train.make_context(command[0], command[1:]).params), stage)

    for variant in ablations.VARIANTS[1:]:
        folder = tmp_path / variant.name
        ablations._take_over(variant, whole, folder)
        assert (folder / "tokenizer.json").exists() == variant.extra  # else made of the captions that are left
        taken = {path.stem for path in (folder / "state").iterdir()}
        assert taken == set(stages[: stages.index(variant.first)])
        assert all(told(variant, stage) == told(ablations.VARIANTS[0], stage) for stage in taken)
