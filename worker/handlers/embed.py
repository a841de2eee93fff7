"""embed: each item to a unit-norm vector."""

from __future__ import annotations

from revln.errors import ItemError
from revln.jobs.schemas import EmbedParameters, Item
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import embed, item_contents, load_embedder
from worker.text_length import measured

__all__ = ["run_embed"]


def run_embed(context: Context[EmbedParameters]) -> Done:
    loaded = load_embedder(context)
    parsed = parse_items(context.todo, Item)
    asked = context.parameters
    contents = item_contents(context, [item for _, item in parsed], queries=asked.input_type == "query")
    contents, reads = measured(loaded, contents, asked.truncate)
    vectors = embed(context, loaded, contents)
    return Done(
        [
            Outcome(todo.index, id=_id(item), error=vector)
            if isinstance(vector, ItemError)
            else Outcome(todo.index, id=_id(item), fields=read, vector=vector)
            for (todo, item), vector, read in zip(parsed, vectors, reads, strict=True)
        ]
    )


def _id(item: Item | ItemError) -> str | None:
    return item.id if isinstance(item, Item) else None
