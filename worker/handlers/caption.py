"""caption: describe each image, prompted with the captions of its nearest neighbours in a collection."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import asdict, fields
from typing import Any

from revln.errors import ItemError, ItemInvalid
from revln.images import decode_image
from revln.jobs.schemas import Item
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Operation
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import Content, image_bytes, item_contents
from worker.evidence import find_evidence
from worker.models import LoadedModel

__all__ = ["run_caption"]


def run_caption(context: Context) -> Done:
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
        if isinstance(raw, ItemError):
            outcomes.append(Outcome(todo.index, id=item_id, error=raw))
            continue
        captions = [asdict(caption) for caption in loaded.model.finish(Operation.CAPTION, raw)]
        shown: dict[str, Any] = {"captions": captions, "evidence": [asdict(one) for one in found.evidence]}
        if found.note is not None:
            shown["evidence_note"] = found.note
        outcomes.append(Outcome(todo.index, id=item_id, fields=shown))
    return Done(outcomes)


def _with_image(item: Item | ItemError) -> Item | ItemError:
    if isinstance(item, ItemError) or item.image is not None:
        return item
    return ItemInvalid("This item has no image; only images can be captioned.")


def _prepare(context: Context, loaded: LoadedModel, content: Content, evidence: tuple[Evidence, ...]) -> Future[Any]:
    model = loaded.model
    data = image_bytes(context.runtime, content)
    names = [one.name for one in fields(CaptionOptions) if one.name in context.input]
    options = CaptionOptions(**{name: context.input[name] for name in names})
    with context.watched("preparing a picture"):
        image = decode_image(data, context.runtime.image_limits, target_side=model.info.image_size)
        prepared = model.prepare(Operation.CAPTION, CaptionRequest(image, evidence, context.input["prompt"], options))
    return loaded.batcher.submit(
        Operation.CAPTION, prepared, context.priority, alone=context.alone, owner=context.lease
    )
