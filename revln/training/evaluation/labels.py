"""Names of labelled pictures: zero-shot top-1 of each source against that source's own names.

Radford et al., CLIP, ICML 2021 (arXiv:2103.00020): the name whose "a photo of a {name}." is nearest to the picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revln.errors import ValidationFailed
from revln.models.base import Model
from revln.training.data import Pictures, is_held_out
from revln.training.evaluation.options import DataSet
from revln.training.evaluation.running import embed_pictures, embed_texts
from revln.training.labels import NAMED, LabelRow, read_label_file

__all__ = ["measure_labels", "names_of", "read_labels"]


def read_labels(path: Path) -> list[LabelRow]:
    """Read the rows of a label file that have labels.

    Raises:
        ValidationFailed: the file is missing or malformed, or has no such row.
    """
    rows = [row for row in read_label_file(path) if row.labels]
    if not rows:
        raise ValidationFailed(f"{path} holds no line with labels")
    return rows


def names_of(rows: Sequence[LabelRow]) -> list[str]:
    """Return the names of one source, each once: what a picture of it may be called.

    A label that is somewhere the only one is a name, and where none of a picture's labels is, one of them stands for
    them all. Where some label goes with several others ("apple, golden delicious", "apple, pink lady") labels go from
    coarse to fine and the last is the name. Elsewhere they are synonyms, and the first is.
    """
    alone = {row.labels[0] for row in rows if len(row.labels) == 1}
    finer: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if not alone.intersection(row.labels):
            finer[row.labels[0]].add(row.labels[-1])
    place = -1 if any(len(last) > 1 for last in finer.values()) else 0
    names = [name for row in rows for name in (alone.intersection(row.labels) or {row.labels[place]})]
    return sorted(set(names))


def measure_labels(model: Model, data: DataSet, limit: int | None = None) -> dict[str, Any]:
    """Return top-1 of each source. A source's names are those of all its splits."""
    by_source: dict[str, list[LabelRow]] = defaultdict(list)
    for row in read_labels(data.file):
        by_source[row.source].append(row)
    pictures = Pictures(data.images)
    sources: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for source, rows in by_source.items():
        mine = [row for row in rows if row.split == data.split and is_held_out(row.file, data.held_out)][:limit]
        names = names_of(rows)
        if reason := _unfit(rows, mine, names, data.split):
            left_out[source] = reason
        else:
            sources[source] = {
                "n_images": len(mine),
                "n_names": len(names),
                "top1": _top1(model, mine, names, pictures),
            }
    if not sources:
        raise ValidationFailed(f"{data.file}: no source can be measured: {left_out}")
    mean = sum(one["top1"] for one in sources.values()) / len(sources)
    return {"split": data.split, "mean_top1": round(mean, 4), "sources": sources, "left_out": left_out}


def _unfit(rows: Sequence[LabelRow], mine: Sequence[LabelRow], names: Sequence[str], split: str) -> str | None:
    if not mine:
        return f"no picture of split {split}"
    if len(names) == 1:
        return "one name"
    # Where hardly any name has two pictures, the source is a list of pictures and no set of classes.
    often = sum(1 for name in names if sum(name in row.labels for row in rows) > 1)
    return f"{len(names)} names, of which {often} have two pictures" if 2 * often < len(names) else None


def _top1(model: Model, rows: Sequence[LabelRow], names: Sequence[str], pictures: Pictures) -> float:
    """Return the share of pictures whose nearest name is a label of theirs. A tie counts against the model."""
    texts = embed_texts(model, [NAMED[0].format(name) for name in names])
    scores = embed_pictures(model, [row.file for row in rows], pictures) @ texts.T  # (N, names)
    right = 0
    for row, line in zip(rows, scores, strict=True):
        own = [name in row.labels for name in names]
        best = max(score for score, mine in zip(line, own, strict=True) if mine)
        right += all(score < best for score, mine in zip(line, own, strict=True) if not mine)
    return round(right / len(rows), 4)
