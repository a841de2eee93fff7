"""Train the model again without one of its parts at a time, and print what each part brought.

All runs are short alike (`_SHORT`), so they compare with each other, not with a model trained to its end: over an hour
on two cores. Options of `revln train` after ``--`` change that. A run goes on where it was cut; stages that a part
does not touch are taken over from the whole run, which ``--whole`` may name if it is there already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from revln.models.revln.card import fingerprint

_DATA = Path("../shared/data")
_STAGES = ("text", "joint", "language", "caption")
_SHORT = (
    "--text-epochs=1", "--language-epochs=1", "--epochs=2", "--caption-epochs=1",
    "--train-size=128", "--freeze=7",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """``first`` is the first stage that the change touches; those before it are the whole run's."""

    name: str
    change: tuple[str, ...]
    first: str
    backbone: bool = True
    extra: bool = True  # without, the tokenizer is made of the training captions alone


VARIANTS = [
    Variant("whole", (), "text"),
    Variant("no ImageNet weights: a random trunk", ("--freeze", "0"), "joint", backbone=False),
    Variant("ImageNet trunk left as it is", ("--freeze", "19"), "joint"),
    # Nothing of them: no stage of their own, no pair loss in the joint stage, no evidence, and no words either.
    Variant("no COCO captions and none of their words", (), "text", extra=False),
    Variant("no captioning in the joint loss", ("--captioning", "0"), "joint"),
    Variant("with the hardest-negative hinge", ("--hardest", "0.5"), "joint"),
    Variant("a decoder that saw no sentences alone first", ("--language-epochs", "0"), "language"),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ablations", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="Where the runs are kept.")
    parser.add_argument("--whole", type=Path, help="The whole run, made with the same options.")
    parser.add_argument("--only", nargs="*", help="Names of variants, or the beginnings of them.")
    parser.add_argument("options", nargs="*", help="After --: options of `revln train` for every run, epochs say.")
    given = parser.parse_args()
    whole = given.whole or given.out / "whole"
    table = Table(title="Flickr8k dev", title_justify="left")
    for column in ("run", "i2t R@1 / 10", "t2i R@1 / 10", "BLEU-4", "CIDEr", "CIDEr without evidence"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for variant in VARIANTS:
        if given.only and not any(variant.name.startswith(name) for name in given.only):
            continue
        folder = whole if variant.name == "whole" else given.out / variant.name.replace(":", "").replace(" ", "-")
        _take_over(variant, whole, folder)
        command = _command(folder, variant, given.options)
        _revln(command)
        table.add_row(variant.name, *_figures(_evaluate(folder, command)))
    Console(width=120).print(table)
    return 0


def _take_over(variant: Variant, whole: Path, folder: Path) -> None:
    if folder == whole or folder.is_dir():
        return
    (folder / "state").mkdir(parents=True)
    if variant.extra:
        shutil.copy(whole / "tokenizer.json", folder)
    for stage in _STAGES[: _STAGES.index(variant.first)]:
        shutil.copy(whole / f"state/{stage}.pt", folder / "state")


def _command(folder: Path, variant: Variant, options: Sequence[str]) -> list[str]:
    backbone = ("--backbone", _DATA / "mobilenet_v2/mobilenet_v2_imagenet1001.safetensors")
    extra = ("--extra-captions", _DATA / "coco_captions/captions.tsv.gz")
    data = ("--data", _DATA / "flickr8k/captions.jsonl")
    parts = (*data, *(extra if variant.extra else ()), *(backbone if variant.backbone else ()))
    return [str(each) for each in ("train", "--out", folder, *parts, *_SHORT, *options, *variant.change)]


def _evaluate(folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Once for each model and command that made it: it takes two minutes, and a run that was cut goes on."""
    path = folder / "eval.json"
    arguments = ["eval", "--model", str(folder), "--store", str(_DATA / "flickr8k/captions.jsonl"), "--json"]
    # The fingerprint too: with a --time-limit-s the same command trains on.
    of = [fingerprint(folder), *command, *arguments]
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("of") != of:
        kept = {"of": of, "report": json.loads(_revln(arguments))}
        path.write_text(json.dumps(kept))
    report: dict[str, Any] = kept["report"]
    return report


def _revln(arguments: Sequence[str]) -> str:
    command = [str(Path(sys.executable).with_name("revln")), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _figures(report: dict[str, Any]) -> list[str]:
    recalls = [f"{report[way]['r1']:.1f} / {report[way]['r10']:.1f}" for way in ("i2t", "t2i")]
    caption = report["caption"]
    return [*recalls, *(f"{value:.3f}" for value in (caption["bleu4"], caption["cider"])),
            f"{report['caption_no_retrieval']['cider']:.3f}"]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
