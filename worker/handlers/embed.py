"""embed: each item to a unit-norm vector."""

from __future__ import annotations

from revln.errors import ItemError, ModelUnavailable
from revln.jobs.schemas import Item
from revln.models.base import Operation
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import Content, embed, image_content, text_content
from worker.models import LoadedModel

__all__ = ["item_content", "load_embedder", "run_embed"]


def run_embed(context: Context) -> Done:
    loaded = load_embedder(context)
    parsed = parse_items(context.todo)
    vectors = embed(context, loaded, [item_content(context, loaded, item) for _, item in parsed])
    return Done(
        [
            Outcome(todo.index, id=_id(item), error=vector)
            if isinstance(vector, ItemError)
            else Outcome(todo.index, id=_id(item), vector=vector)
            for (todo, item), vector in zip(parsed, vectors, strict=True)
        ]
    )


def load_embedder(context: Context) -> LoadedModel:
    """The job's model, if it embeds anything at all. Raises ModelUnavailable."""
    assert context.job.model is not None
    loaded = context.runtime.models.get(context.job.model, context.job.model_fingerprint)
    if loaded.model.info.dim is None:
        raise ModelUnavailable(f"Model {context.job.model} makes no vectors.")
    return loaded


def item_content(context: Context, loaded: LoadedModel, item: Item | ItemError) -> Content | ItemError:
    """What of an item is embedded: its image if it has one, else its text."""
    if isinstance(item, ItemError):
        return item
    try:
        content = image_content(context, item.image) if item.image is not None else text_content(item.text or "")
    except ItemError as err:
        return err
    if content.operation not in loaded.model.info.operations:
        what = "images" if content.operation is Operation.EMBED_IMAGE else "texts"
        return ItemError(f"Model {loaded.model.info.name} does not read {what}.")
    return content


def _id(item: Item | ItemError) -> str | None:
    return item.id if isinstance(item, Item) else None
