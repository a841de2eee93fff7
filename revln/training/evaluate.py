"""Measure a model on a split: Recall@K both ways, and captions with and without retrieved evidence.

Everything goes through the Model contract (prepare, forward, finish), so the figures are those of what is served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from revln.errors import ValidationFailed
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Model, Operation
from revln.training.data import Albums, Example, Pictures, read_captions
from revln.training.metrics import score_captions
from revln.training.recall import recall_both_ways

__all__ = ["EMBEDS", "EvalOptions", "evaluate", "run_model"]

# Retrieved captions a picture; the model shows as many of them to its decoder as it was trained with.
_EVIDENCE = 4
EMBEDS = {Operation.EMBED_IMAGE, Operation.EMBED_TEXT}


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """One field for each option of `revln eval`."""

    data: Path
    images: Path
    split: str = "dev"
    store: Path | None = None  # captions.jsonl to retrieve evidence from
    store_split: str = "train"
    limit: int | None = None  # pictures
    captions: bool = True
    examples: int = 0  # captions to be returned for reading
    num_beams: int = 3


def evaluate(model: Model, options: EvalOptions, retriever: Model | None = None) -> dict[str, Any]:
    """One JSON object, None in it where the model does not do that. ``caption`` is None without a store, too.

    ``retriever`` finds the evidence; without one the model itself does.

    Raises:
        ValidationFailed: a file is missing or malformed; or there is a store, and nothing to look evidence up with.
    """
    embeds, captions = set(model.info.operations) >= EMBEDS, Operation.CAPTION in model.info.operations
    retriever = retriever or (model if embeds else None)
    if (
        options.store
        and options.captions
        and captions
        and (retriever is None or not set(retriever.info.operations) >= EMBEDS)
    ):
        raise ValidationFailed(
            f"model {(retriever or model).info.name} does not embed pictures and texts, so it finds no evidence in a "
            "store: name one that does with --retriever, or leave out --store"
        )
    started = time.monotonic()
    examples = read_captions(options.data, options.split)[: options.limit]
    store = read_captions(options.store, options.store_split) if options.store else []
    pictures = Pictures(options.images)
    report: dict[str, Any] = {
        "model": model.info.name,
        "fingerprint": model.info.fingerprint,
        "split": options.split,
        "n_images": len(examples),
        "i2t": None,
        "t2i": None,
        "caption": None,
        "caption_no_retrieval": None,
    }
    if embeds:
        images = _images(model, examples, pictures)
        owner = [i for i, example in enumerate(examples) for _ in example.captions]
        texts = run_model(model, Operation.EMBED_TEXT, [text for example in examples for text in example.captions])
        i2t, t2i = recall_both_ways(images, np.stack(texts), owner)
        report |= {"i2t": i2t.as_dict(), "t2i": t2i.as_dict()}
    if options.captions and captions:
        bare = [()] * len(examples)
        report["caption_no_retrieval"], plain = _captions(model, examples, pictures, bare, options)
        told = plain
        if store and retriever is not None:
            seen = images if retriever is model else _images(retriever, examples, pictures)
            evidence = _retrieve(retriever, seen, examples, store)
            report["with_evidence"] = sum(1 for found in evidence if found)
            report["caption"], told = _captions(model, examples, pictures, evidence, options)
        shown = zip(examples, told, plain, strict=True)
        lines = [{"file": e.file, "caption": a, "no_retrieval": b, "reference": e.captions[0]} for e, a, b in shown]
        if options.examples:
            report["examples"] = lines[:: max(1, len(lines) // options.examples)][: options.examples]
    return report | {"seconds": round(time.monotonic() - started, 1)}


def _images(model: Model, examples: Sequence[Example], pictures: Pictures) -> npt.NDArray[np.float32]:
    return np.stack(run_model(model, Operation.EMBED_IMAGE, [example.file for example in examples], pictures))


def run_model(
    model: Model,
    operation: Operation,
    items: Sequence[Any],
    pictures: Albums | Pictures | None = None,
    quiet: bool = False,
) -> list[Any]:
    """All items in batches, in order. Items are file names where ``pictures`` is given for an image operation."""
    out: list[Any] = []
    size = model.max_batch(operation)
    for start in tqdm(range(0, len(items), size), desc=operation.value, unit="batch", disable=quiet):
        batch = items[start : start + size]
        ready = [model.prepare(operation, pictures[item] if pictures else item) for item in batch]
        out += [model.finish(operation, raw) for raw in model.forward(operation, ready)]
    return out


def _retrieve(
    model: Model, images: npt.NDArray[np.float32], examples: Sequence[Example], store: Sequence[Example]
) -> list[tuple[Evidence, ...]]:
    """The nearest captions of the store for each picture, its own never among them, nor any that is too far."""
    texts = [(example.file, text) for example in store for text in example.captions]
    vectors = np.stack(run_model(model, Operation.EMBED_TEXT, [text for _, text in texts]))
    files = np.array([file for file, _ in texts])
    if len(set(files)) < 2:
        raise ValidationFailed("the store holds the captions of one picture; evidence needs at least two")
    least = model.info.evidence_min_score
    out = []
    for image, example in zip(images, examples, strict=True):
        scores = np.where(files == example.file, -np.inf, vectors @ image)
        first = np.argsort(-scores)[:_EVIDENCE]
        # Its own are among the first where the store is small.
        best = [j for j in first if np.isfinite(scores[j]) and (least is None or scores[j] >= least)]
        out.append(tuple(Evidence(str(j), texts[j][1], float(scores[j])) for j in best))
    return out


def _captions(
    model: Model,
    examples: Sequence[Example],
    pictures: Pictures,
    evidence: Sequence[tuple[Evidence, ...]],
    options: EvalOptions,
) -> tuple[dict[str, float], list[str]]:
    decoding = CaptionOptions(num_beams=options.num_beams)
    texts: list[str] = []
    size = model.max_batch(Operation.CAPTION)
    # In small steps, so that a thousand decoded pictures are never in memory at once.
    for start in tqdm(range(0, len(examples), size), desc="caption", unit="batch"):
        rows = range(start, min(start + size, len(examples)))
        requests = [CaptionRequest(pictures[examples[i].file], evidence[i], options=decoding) for i in rows]
        ready = [model.prepare(Operation.CAPTION, request) for request in requests]
        for raw in model.forward(Operation.CAPTION, ready):
            texts.append(model.finish(Operation.CAPTION, raw)[0].text)
    return score_captions(texts, [example.captions for example in examples]), texts
