"""Names of labelled pictures: zero-shot top-1 of each source against that source's own names.

Radford et al., CLIP, ICML 2021 (arXiv:2103.00020): the name whose "a photo of a {name}." is nearest to the picture.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revln.errors import ValidationFailed
from revln.models.base import Model
from revln.training.data import Pictures, is_held_out
from revln.training.evaluation.options import DataSet
from revln.training.evaluation.running import embed_pictures, embed_texts

__all__ = ["Labelled", "measure_labels", "names_of", "read_labels"]

_COUNT = re.compile(r"\d+ ")
_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled picture. ``labels`` are without the number of things that they count."""

    file: str
    source: str
    split: str
    labels: tuple[str, ...]


def read_labels(path: Path) -> list[Labelled]:
    """Read the labelled rows of ``{"file", "source", "split", "labels"}`` a line; others are passed over.

    Raises:
        ValidationFailed: the file is missing or malformed, or has no such row.
    """
    if not path.is_file():
        raise ValidationFailed(f"{path} is missing; name the labels with --labels")
    out = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
                if "labels" in row:
                    labels = tuple(_COUNT.sub("", label, count=1) for label in row["labels"])
                    out.append(Labelled(row["file"], row["source"], row["split"], labels))
            except (ValueError, KeyError, TypeError) as err:
                raise ValidationFailed(f"{path}, line {number}: needs file, source, split, labels ({err!r})") from err
            if out and not out[-1].labels:
                raise ValidationFailed(f"{path}, line {number}: labels is empty; leave the picture out")
    if not out:
        raise ValidationFailed(f"{path} holds no line with labels")
    return out


def names_of(rows: Sequence[Labelled]) -> list[str]:
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
    by_source: dict[str, list[Labelled]] = defaultdict(list)
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


def _unfit(rows: Sequence[Labelled], mine: Sequence[Labelled], names: Sequence[str], split: str) -> str | None:
    if not mine:
        return f"no picture of split {split}"
    if len(names) == 1:
        return "one name"
    # Where hardly any name has two pictures, the source is a list of pictures and no set of classes.
    often = sum(1 for name in names if sum(name in row.labels for row in rows) > 1)
    return f"{len(names)} names, of which {often} have two pictures" if 2 * often < len(names) else None


def _top1(model: Model, rows: Sequence[Labelled], names: Sequence[str], pictures: Pictures) -> float:
    """Return the share of pictures whose nearest name is a label of theirs. A tie counts against the model."""
    texts = embed_texts(model, [_TEMPLATE.format(name) for name in names])
    scores = embed_pictures(model, [row.file for row in rows], pictures) @ texts.T  # (N, names)
    right = 0
    for row, line in zip(rows, scores, strict=True):
        own = [name in row.labels for name in names]
        best = max(score for score, mine in zip(line, own, strict=True) if mine)
        right += all(score < best for score, mine in zip(line, own, strict=True) if not mine)
    return round(right / len(rows), 4)
