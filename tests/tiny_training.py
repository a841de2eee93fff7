"""Data for training from end to end in seconds: eight coloured squares with captions, and four with names."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from revln.cli.train import train

__all__ = ["COLOURS", "arguments", "run_train", "save_training_data", "stages_of", "weights_of"]

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "pink", "grey"]
SIZES = {
    "image_size": 64, "trunk": "mobilenet_v2", "dim": 32, "vocab_size": 400, "text_embedding": 16, "text_hidden": 24,
    "caption_width": 32, "caption_layers": 2, "caption_inner": 64,
}  # fmt: skip


def save_training_data(folder: Path) -> Path:
    """Write captions.jsonl, items.jsonl (labels, and captioned rows), extra.tsv, sizes.json and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    captions, items = [], []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + i, 50), colour).save(folder / f"{i}.png")
        told = [f"a {colour} square .", f"the picture is {colour}"]
        captions += [{"file": f"{i}.png", "split": split, "captions": told} for split in ("train", "dev")]
        row = {"file": f"{i}.png", "source": "colours", "kind": "object"}
        items += [{**row, "labels": [f"2 {colour}"], "split": split} for split in ("train", "dev")]
        items.append({**row, "source": "shown", "kind": "captioned", "captions": told, "split": "train"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    rows = [f"{i // 2}\t0\tsome extra caption {i} of {COLOURS[i // 2]} things" for i in range(16)]
    (folder / "extra.tsv").write_text("image_id\tin_val2017\tcaption\n" + "\n".join(rows) + "\n")
    (folder / "sizes.json").write_text(json.dumps(SIZES))
    return folder


def arguments(data: Path, out: Path, *more: str, epochs: int = 1, labels: bool = True) -> list[str]:
    files = {"data": "captions.jsonl", "images": ".", "extra-captions": "extra.tsv", "config": "sizes.json"}
    if labels:
        files |= {"labels": "items.jsonl", "label-images": "."}
    args = [part for name, file in files.items() for part in (f"--{name}", str(data / file))]
    for name in ("epochs", "text-epochs", "language-epochs", "caption-epochs"):
        args += [f"--{name}", str(epochs)]
    return [*args, "--out", str(out), "--batch", "4", "--train-size", "32", "--threads", "1", "--device", "cpu", *more]


def run_train(args: list[str]) -> str:
    result = CliRunner().invoke(train, args)
    assert result.exit_code == 0, result.output
    return result.output


def weights_of(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def stages_of(out: Path) -> list[str]:
    lines = (out / "curves.csv").read_text().splitlines()[1:]
    return list(dict.fromkeys(line.split(",")[0] for line in lines))
