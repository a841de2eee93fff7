"""Measure a model: Recall@K both ways, captions with and without evidence, and the names of labelled pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revln.errors import ValidationFailed
from revln.models.base import Evidence, Model, Operation
from revln.training.data import Example, Pictures, is_held_out, read_captions
from revln.training.evaluation.labels import measure_labels
from revln.training.evaluation.options import DataSet, EvalOptions
from revln.training.evaluation.reading import measure_reading
from revln.training.evaluation.running import EMBEDS, Vectors, embed_pictures, embed_texts, write_captions
from revln.training.evaluation.stores import Store
from revln.training.metrics import score_captions
from revln.training.recall import recall_both_ways

__all__ = ["evaluate"]


def evaluate(model: Model, options: EvalOptions, retriever: Model | None = None) -> dict[str, Any]:
    """Return one JSON object, None in it where the model does not do that. ``caption`` is None without a store, too.

    ``retriever`` finds the evidence; without one the model itself does.

    Raises:
        ValidationFailed: a file is missing or malformed; or there is a store, and nothing to look evidence up with.
    """
    started = time.monotonic()
    captions = options.captions and Operation.CAPTION in model.info.operations
    stores = _stores(model, options, retriever) if captions else []
    report: dict[str, Any] = {"model": model.info.name, "fingerprint": model.info.fingerprint}
    sets = [_Measured.of(model, data, options.limit) for data in options.data]
    for one in sets[:1]:
        report |= one.report(options, stores)
    if options.labels is not None:
        embeds = set(model.info.operations) >= EMBEDS
        report["labels"] = measure_labels(model, options.labels, options.limit) if embeds else None
    if sets[1:]:
        report["domains"] = {one.name: one.report(options, stores) for one in sets[1:]}
    return report | {"seconds": round(time.monotonic() - started, 1)}


def _stores(model: Model, options: EvalOptions, retriever: Model | None) -> list[Store]:
    finder = retriever or model
    if options.stores and not set(finder.info.operations) >= EMBEDS:
        raise ValidationFailed(
            f"model {finder.info.name} does not embed pictures and texts, so it finds no evidence in a "
            "store: name one that does with --retriever, or leave out --store"
        )
    return [Store.read(file, finder) for file in options.stores]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One data set's pictures and captions, and the model that is measured on them."""

    model: Model
    name: str
    split: str
    examples: Sequence[Example]
    pictures: Pictures

    @classmethod
    def of(cls, model: Model, data: DataSet, limit: int | None) -> _Measured:
        examples = [each for each in read_captions(data.file, data.split) if is_held_out(each.file, data.held_out)]
        if not examples:
            raise ValidationFailed(f"{data.file}: no picture of split '{data.split}' is held out; leave --held-out out")
        return cls(model, data.name, data.split, examples[:limit], Pictures(data.images))

    def report(self, options: EvalOptions, stores: Sequence[Store]) -> dict[str, Any]:
        model, examples = self.model, self.examples
        report: dict[str, Any] = {"data": self.name, "split": self.split, "n_images": len(examples)}
        report |= dict.fromkeys(("i2t", "t2i", "caption", "caption_no_retrieval"))
        images = self._vectors(model) if set(model.info.operations) >= EMBEDS else None
        if images is not None:
            texts = embed_texts(model, [text for example in examples for text in example.captions])
            owner = [i for i, example in enumerate(examples) for _ in example.captions]
            i2t, t2i = recall_both_ways(images, texts, owner)
            report |= {"i2t": i2t.as_dict(), "t2i": t2i.as_dict()}
        if options.captions and Operation.CAPTION in model.info.operations:
            report |= self._captions(options, stores, images)
        return report

    def _captions(self, options: EvalOptions, stores: Sequence[Store], images: Vectors | None) -> dict[str, Any]:
        plain = self._write([()] * len(self.examples), options)
        report: dict[str, Any] = {"caption_no_retrieval": self._score(plain)}
        told = plain
        for i, store in enumerate(stores):
            seen = images if images is not None and store.retriever is self.model else self._vectors(store.retriever)
            evidence = store.evidence(seen, self.examples)
            written = self._write(evidence, options)
            figures = {"with_evidence": sum(1 for found in evidence if found), "caption": self._score(written)}
            if i == 0:
                told = written
                report |= figures
            report.setdefault("stores", {})[store.name] = figures
        if options.evidence:
            report["evidence"] = measure_reading(self.examples, plain, lambda shown: self._write(shown, options))
        if options.examples:
            shown = zip(self.examples, told, plain, strict=True)
            lines = [{"file": e.file, "caption": a, "no_retrieval": b, "reference": e.captions[0]} for e, a, b in shown]
            report["examples"] = lines[:: max(1, len(lines) // options.examples)][: options.examples]
        return report

    def _vectors(self, model: Model) -> Vectors:
        return embed_pictures(model, [example.file for example in self.examples], self.pictures)

    def _write(self, evidence: Sequence[tuple[Evidence, ...]], options: EvalOptions) -> list[str]:
        files = [example.file for example in self.examples]
        return write_captions(self.model, files, self.pictures, evidence, options.num_beams)

    def _score(self, captions: Sequence[str]) -> dict[str, float]:
        return score_captions(captions, [example.captions for example in self.examples])
