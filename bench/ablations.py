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

_DATA = Path("../shared/data")
_STAGES = ("text", "language", "joint", "caption", "self-critical")
_SHORT = (
    "--text-epochs=1", "--language-epochs=1", "--epochs=2", "--caption-epochs=1", "--self-critical-epochs=0",
    "--train-size=128", "--freeze=7",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """``first`` is the first stage that the change touches; those before it are the whole run's."""

    name: str
    change: tuple[str, ...]
    first: str
    backbone: bool = True


VARIANTS = [
    Variant("whole", (), "text"),
    Variant("no ImageNet weights: a random trunk", ("--freeze", "0"), "joint", backbone=False),
    Variant("ImageNet trunk left as it is", ("--freeze", "19"), "joint"),
    Variant("no COCO captions", ("--text-epochs", "0", "--language-epochs", "0", "--no-extra-evidence"), "text"),
    Variant("no captioning in the joint loss", ("--captioning", "0"), "joint"),
    Variant("with the hardest-negative hinge", ("--hardest", "0.5"), "joint"),
    Variant("evidence from Flickr8k alone", ("--no-extra-evidence",), "caption"),
    Variant("with a pass of self-critical training", ("--self-critical-epochs", "1"), "self-critical"),
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
        _train(folder, variant, given.options)
        table.add_row(variant.name, *_figures(_evaluate(folder)))
    Console(width=120).print(table)
    return 0


def _take_over(variant: Variant, whole: Path, folder: Path) -> None:
    if folder == whole or folder.is_dir():
        return
    (folder / "state").mkdir(parents=True)
    shutil.copy(whole / "tokenizer.json", folder)
    for stage in _STAGES[: _STAGES.index(variant.first)]:
        shutil.copy(whole / f"state/{stage}.pt", folder / "state")


def _train(folder: Path, variant: Variant, options: Sequence[str]) -> None:
    backbone = ("--backbone", _DATA / "mobilenet_v2/mobilenet_v2_imagenet1001.safetensors")
    extra = ("--extra-captions", _DATA / "coco_captions/captions.tsv.gz")
    _revln("train", "--out", folder, *extra, *(backbone if variant.backbone else ()), *_SHORT, *options,
           *variant.change)  # fmt: skip


def _evaluate(folder: Path) -> dict[str, Any]:
    """Once: it takes two minutes, and a run that was cut goes on."""
    path = folder / "eval.json"
    if not path.is_file():
        path.write_text(_revln("eval", "--model", folder, "--store", _DATA / "flickr8k/captions.jsonl", "--json"))
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def _revln(*arguments: object) -> str:
    command = [str(Path(sys.executable).with_name("revln")), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _figures(report: dict[str, Any]) -> list[str]:
    recalls = [f"{report[way]['r1']:.1f} / {report[way]['r10']:.1f}" for way in ("i2t", "t2i")]
    caption = report["caption"]
    return [*recalls, *(f"{value:.3f}" for value in (caption["bleu4"], caption["cider"])),
            f"{report['caption_no_retrieval']['cider']:.3f}"]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
