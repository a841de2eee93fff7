"""caption: describe each image, prompted with the captions of its nearest neighbours in a collection."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import asdict, fields
from typing import Any

from revln.db.generations import generation_for
from revln.errors import ItemError, ItemInvalid
from revln.images import decode_image
from revln.jobs.schemas import Item
from revln.models.base import CaptionOptions, CaptionRequest, Evidence, Operation
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import Content, embed, image_bytes, item_contents
from worker.models import LoadedModel
from worker.nearest import Wanted, nearest

__all__ = ["run_caption"]

_LOOK_FURTHER = 4  # neighbours without a text are no evidence, so look at this many times as many


def run_caption(context: Context) -> Done:
    assert context.job.model is not None
    loaded = context.runtime.models.get(context.job.model, context.job.model_fingerprint)
    loaded.require(Operation.CAPTION)
    parsed = parse_items(context.todo, Item)
    contents = item_contents(context, [_with_image(item) for _, item in parsed])
    evidence = _evidence(context, loaded, contents)
    pool = context.runtime.prepare_pools[context.priority]
    started = [
        content if isinstance(content, ItemError) else pool.submit(_prepare, context, loaded, content, found)
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
        fields = {"captions": captions, "evidence": [asdict(one) for one in found]}
        outcomes.append(Outcome(todo.index, id=item_id, fields=fields))
    return Done(outcomes)


def _with_image(item: Item | ItemError) -> Item | ItemError:
    if isinstance(item, ItemError) or item.image is not None:
        return item
    return ItemInvalid("This item has no image; only images can be captioned.")


def _evidence(context: Context, loaded: LoadedModel, contents: list[Content | ItemError]) -> list[tuple[Evidence, ...]]:
    """The captions to prompt with, best first, for each image; none without a collection or near neighbours."""
    if context.job.collection is None:
        return [() for _ in contents]
    with context.runtime.db.read() as connection:
        collection = generation_for(connection, context.job.collection, loaded.model.info.joint_fingerprint)
    context.runtime.models.get(loaded.model.info.name, collection.model_fingerprint)  # vectors of two never meet
    vectors = embed(context, loaded, contents)
    good = [Wanted(vector) for vector in vectors if not isinstance(vector, ItemError)]
    wanted = int(context.input["neighbors"])
    hits, _ = nearest(context, collection, good, wanted * _LOOK_FURTHER, filter_json=context.input.get("filter"))
    found = iter(hits)
    return [() if isinstance(vector, ItemError) else _texts(next(found), wanted) for vector in vectors]


def _texts(hits: list[dict[str, Any]], wanted: int) -> tuple[Evidence, ...]:
    with_text = [hit for hit in hits if hit["text"]]
    return tuple(Evidence(hit["id"], hit["text"], hit["score"]) for hit in with_text[:wanted])


def _prepare(context: Context, loaded: LoadedModel, content: Content, evidence: tuple[Evidence, ...]) -> Future[Any]:
    model = loaded.model
    data = image_bytes(context.runtime, content)
    image = decode_image(data, context.runtime.image_limits, target_side=model.info.image_size)
    names = [one.name for one in fields(CaptionOptions) if one.name in context.input]
    options = CaptionOptions(**{name: context.input[name] for name in names})
    request = CaptionRequest(image, evidence, context.input["prompt"], options)
    prepared = model.prepare(Operation.CAPTION, request)
    return loaded.batcher.submit(Operation.CAPTION, prepared, context.priority, alone=context.alone)
