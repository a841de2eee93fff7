"""caption: describe each image, prompted with the captions of its nearest neighbours in a collection."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, fields
from typing import Any

from revln.errors import ItemError, ItemInvalid
from revln.images import decode_image
from revln.jobs.caption_schemas import CaptionParameters
from revln.jobs.schemas import Item
from revln.models.base import Caption, CaptionOptions, CaptionRequest, Evidence, Operation
from revln.models.outputs import finished
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import Content, image_bytes, item_contents
from worker.evidence import find_evidence
from worker.models.loading import LoadedModel

__all__ = ["run_caption"]


def run_caption(context: Context[CaptionParameters]) -> Done:
    assert context.job.model is not None
    loaded = context.runtime.models.get(context.job.model, context.job.model_fingerprint)
    loaded.require(Operation.CAPTION)
    parsed = parse_items(context.todo, Item)
    contents = item_contents(context, [_with_image(item) for _, item in parsed])
    evidence = find_evidence(context, loaded, contents)
    pool = context.runtime.prepare_pools[context.priority]
    started = [
        content
        if isinstance(content, ItemError)
        else pool.submit(context.job.tenant, _prepare, context, loaded, content, found.evidence)
        for content, found in zip(contents, evidence, strict=True)
    ]
    raws = context.gather(context.gather(started))
    outcomes = []
    for (todo, item), found, raw in zip(parsed, evidence, raws, strict=True):
        item_id = item.id if isinstance(item, Item) else None
        result = finished(loaded.model, Operation.CAPTION, raw)
        if isinstance(result, ItemError):
            outcomes.append(Outcome(todo.index, id=item_id, error=result))
            continue
        captions, note = _sure_enough(result, context.parameters.min_confidence)
        shown: dict[str, Any] = {
            "captions": [asdict(caption) for caption in captions],
            "evidence": [asdict(one) for one in found.evidence],
        }
        if note is not None:
            shown["caption_note"] = note
        if found.note is not None:
            shown["evidence_note"] = found.note
        outcomes.append(Outcome(todo.index, id=item_id, fields=shown))
    return Done(outcomes)


def _sure_enough(captions: Sequence[Caption], least: float | None) -> tuple[list[Caption], str | None]:
    """Leave out captions of too low a confidence; the note says of the likeliest, if none is left."""
    if least is None:
        return list(captions), None
    sure = [one for one in captions if one.confidence is not None and one.confidence >= least]
    if sure or not captions:
        return sure, None
    best = max(one.confidence or 0.0 for one in captions)
    return [], f"The likeliest caption has confidence {best:.2f}, below min_confidence {least:g}: left out."


def _with_image(item: Item | ItemError) -> Item | ItemError:
    if isinstance(item, ItemError) or item.image is not None:
        return item
    return ItemInvalid("This item has no image; only images can be captioned.")


def _prepare(
    context: Context[CaptionParameters], loaded: LoadedModel, content: Content, evidence: tuple[Evidence, ...]
) -> Future[Any]:
    model, asked = loaded.model, context.parameters
    data = image_bytes(context.runtime, content)
    options = CaptionOptions(**{one.name: getattr(asked, one.name) for one in fields(CaptionOptions)})
    with context.watched("preparing a picture"):
        image = decode_image(data, context.runtime.image_limits, target_side=model.info.image_size)
        prepared = model.prepare(Operation.CAPTION, CaptionRequest(image, evidence, asked.prompt, options))
    return loaded.batcher.submit(
        Operation.CAPTION, prepared, context.priority, alone=context.alone, owner=context.lease
    )
