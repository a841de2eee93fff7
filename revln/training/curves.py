"""The curves of a run: a CSV that grows by a row an epoch, and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path

import click

__all__ = ["Curves"]

_COLUMNS = ("stage", "epoch", "seconds", "loss", "i2t_r1", "i2t_r10", "t2i_r1", "t2i_r10", "recall", "names",
            "bleu4", "cider", "cider_bare", "cider_told", "dev")  # fmt: skip
# Losses go by the left-hand scale, the rest, which is never both recalls and captions, by the right-hand one.
_LOSSES = frozenset({"loss"})


class Curves:
    """Appends to ``curves.csv``; a resumed run goes on in the same file."""

    def __init__(self, folder: Path) -> None:
        self._csv = folder / "curves.csv"
        self._png = folder / "curves.png"

    def add(self, stage: str, epoch: int, **figures: float) -> None:
        new = not self._csv.is_file()
        with self._csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if new:
                writer.writeheader()
            row = {name: f"{value:.4f}" for name, value in figures.items()}
            writer.writerow({"stage": stage, "epoch": epoch, **row})
        click.echo(f"{stage} {epoch}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()), err=True)

    def draw(self) -> None:
        """Write curves.png; without matplotlib (a development dependency) say so and go on."""
        try:
            import matplotlib
        except ModuleNotFoundError:
            click.echo("no curves.png: matplotlib is not installed (pip install matplotlib)", err=True)
            return
        if not self._csv.is_file():
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        with self._csv.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        stages = list(dict.fromkeys(row["stage"] for row in rows))
        figure, axes = pyplot.subplots(1, len(stages), figsize=(4 * len(stages), 3), squeeze=False)
        for axis, stage in zip(axes[0], stages, strict=True):
            mine = [row for row in rows if row["stage"] == stage]
            for name in _COLUMNS[3:]:
                points = [(int(row["epoch"]), float(row[name])) for row in mine if row[name]]
                if not points:
                    continue
                # Made when the first of its curves comes.
                right = next((a for a in figure.axes if a.get_label() == stage), None)
                if name not in _LOSSES and right is None:
                    right = axis.twinx()
                    right.set(label=stage, ylabel="dashed")
                target = axis if name in _LOSSES or right is None else right
                target.plot(*zip(*points, strict=True), ".-" if name in _LOSSES else ".--", label=name)
                if target is right:
                    right.legend(loc="center right")
            axis.set(title=stage, xlabel="epoch", ylabel="loss")
            axis.legend(loc="upper right")
        figure.tight_layout()
        figure.savefig(self._png, dpi=100)
        pyplot.close(figure)
