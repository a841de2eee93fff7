"""Vectors for many items: looked up by content, else computed once, however many jobs ask at the same time."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.access import DEFAULT_TENANT
from revln.db.collections.collections import Collection
from revln.db.embeddings import cached_vectors, store_vectors
from revln.db.jobs.results import vectors_from_bytes, vectors_to_bytes
from revln.errors import ItemError, ItemInvalid, ItemNotFound, ModelUnavailable
from revln.images import decode_image
from revln.jobs.schemas import Item
from revln.models.base import Operation
from revln.models.outputs import finished
from revln.models.prompts import QueryText
from worker.context import Context
from worker.models.loading import LoadedModel
from worker.runtime import Runtime

__all__ = ["Content", "embed", "image_bytes", "item_contents", "load_embedder", "own_contents", "text_content"]


@dataclass(frozen=True, slots=True)
class Content:
    """Something to embed. ``key`` names what it is made of: with a model's fingerprint it names the vector."""

    key: str
    operation: Operation
    text: str | None = None
    image_sha256: str | None = None


def text_content(text: str, tenant: str) -> Content:
    """Text by its characters in NFC: two spellings of é are one text to a reader and to a tokenizer.

    Each tenant's for itself: the time that a job takes would tell one tenant what another has embedded.
    """
    normal = unicodedata.normalize("NFC", text)
    # The default tenant's are named as all were before there were others. No text has a NUL.
    named = normal if tenant == DEFAULT_TENANT else f"{tenant}\0{normal}"
    return Content("text:" + hashlib.sha256(named.encode()).hexdigest(), Operation.EMBED_TEXT, text=normal)


def item_contents(
    context: Context[Any], items: Sequence[Item | ItemError], *, queries: bool = False
) -> list[Content | ItemError]:
    """What of each item is embedded: its image if it has one, else its text. URLs are fetched beside each other.

    ``queries``: the texts are asked with, and not found.
    """
    found = context.gather([item if isinstance(item, ItemError) else _content(context, item) for item in items])
    own = own_contents(context, found)
    return [_asked(one) for one in own] if queries else own


def _asked(content: Content | ItemError) -> Content | ItemError:
    if isinstance(content, ItemError) or content.text is None:
        return content
    return replace(content, text=QueryText(content.text))


def own_contents(context: Context[Any], contents: Sequence[Content | ItemError]) -> list[Content | ItemError]:
    """A picture that the job's tenant does not have is not there, even if its vector or its bytes are."""
    named = {one.image_sha256 for one in contents if isinstance(one, Content)} - {None}
    have = context.runtime.uploads.of(context.job.tenant, "image", [sha256 for sha256 in named if sha256])
    return [
        ItemNotFound(f"There is no image {one.image_sha256}. POST /v1/images uploads one.")
        if isinstance(one, Content) and one.image_sha256 in named - have
        else one
        for one in contents
    ]


def load_embedder(context: Context[Any], collection: Collection | None = None) -> LoadedModel:
    """Load the job's model, or the collection's if that was migrated since the job came in.

    Raises:
        ModelUnavailable: also if the model makes no vectors.
    """
    name, fingerprint = context.job.model, context.job.model_fingerprint
    if collection is not None and collection.model_fingerprint != fingerprint:
        name, fingerprint = collection.model, collection.model_fingerprint
    assert name is not None
    loaded = context.runtime.models.get(name, fingerprint)
    if loaded.model.info.dim is None:
        raise ModelUnavailable(f"Model {name} makes no vectors.")
    return loaded


def _content(context: Context[Any], item: Item) -> Content | ItemError | Future[Content]:
    if item.image is None:
        return text_content(item.text or "", context.job.tenant)
    if item.image.sha256 is not None:
        return Content("image:" + item.image.sha256, Operation.EMBED_IMAGE, image_sha256=item.image.sha256)
    if item.image.url is None:
        return ItemInvalid("A manifest's images are given by url or sha256; upload the bytes first (POST /v1/images).")
    return context.runtime.fetch_pool.submit(_fetch, context.runtime, context.job.tenant, item.image.url)


def _fetch(runtime: Runtime, tenant: str, url: str) -> Content:
    """An image by its URL: only its bytes say what it is. Raises ItemError.

    They are read again when they are decoded: kept until then, the 64 of one chunk would be 1.6 GB.
    """
    data = runtime.fetcher.get(url)
    sha256 = hashlib.sha256(data).hexdigest()
    runtime.uploads.put(tenant, [data])
    return Content("image:" + sha256, Operation.EMBED_IMAGE, image_sha256=sha256)


def image_bytes(runtime: Runtime, content: Content) -> bytes:
    """Raises ItemNotFound if the image was never uploaded, or was deleted."""
    assert content.image_sha256 is not None
    return runtime.blobs.get(content.image_sha256, "images")


def embed(
    context: Context[Any], loaded: LoadedModel, contents: Sequence[Content | ItemError]
) -> list[NDArray[np.float32] | ItemError]:
    """A unit-norm (D,) float32 vector for each content, or the error of that one."""
    contents = [_named(loaded, _readable(loaded, content)) for content in contents]
    wanted = {content.key: content for content in contents if isinstance(content, Content)}
    vectors = _shared_vectors(context, loaded, list(wanted.values()))
    return [vectors[content.key] if isinstance(content, Content) else content for content in contents]


def _readable(loaded: LoadedModel, content: Content | ItemError) -> Content | ItemError:
    if isinstance(content, ItemError) or content.operation in loaded.model.info.operations:
        return content
    what = "images" if content.operation is Operation.EMBED_IMAGE else "texts"
    return ItemInvalid(f"Model {loaded.model.info.name} does not read {what}.")


def _named(loaded: LoadedModel, content: Content | ItemError) -> Content | ItemError:
    """Name a query's vector apart where the model reads it with another prompt than what is found."""
    prompts = loaded.model.info.prompts
    if isinstance(content, ItemError) or not isinstance(content.text, QueryText):
        return content
    if prompts is None or not prompts.differ:
        return content
    made_of = f"{prompts.query}\0{content.text}"
    return replace(content, key="query:" + hashlib.sha256(made_of.encode()).hexdigest())


def _shared_vectors(context: Context[Any], loaded: LoadedModel, wanted: Sequence[Content]) -> dict[str, Any]:
    """The vector or the error of each, by key; what another thread is at already is waited for."""
    fingerprint, in_flight = loaded.model.info.joint_fingerprint, context.runtime.in_flight
    mine: list[tuple[Content, Future[Any]]] = []
    theirs: list[tuple[Content, Future[Any]]] = []
    for content in wanted:
        future, ours = in_flight.claim(fingerprint, content.key)
        (mine if ours else theirs).append((content, future))
    found: dict[str, Any] = {}
    try:
        found.update(_own_vectors(context, loaded, [content for content, _ in mine]))
    finally:
        # Whatever happened to us, those who wait for our vectors must hear of it.
        for content, future in mine:
            in_flight.done(fingerprint, content.key)
            future.set_result(found.get(content.key))
    for (content, _), value in zip(theirs, context.gather((future for _, future in theirs), shared=True), strict=True):
        found[content.key] = value
    orphaned = [content for content, _ in theirs if found[content.key] is None]
    if orphaned:
        # Whoever computed them was canceled or lost its lease: ours to do.
        found.update(_shared_vectors(context, loaded, orphaned))
    return found


def _own_vectors(context: Context[Any], loaded: LoadedModel, wanted: Sequence[Content]) -> dict[str, Any]:
    """From the database, else computed and stored there.

    Looked up only now that they are ours: who looked before could miss what another thread stored in between.
    """
    model, db = loaded.model, context.runtime.db
    with db.read() as connection:
        known = cached_vectors(connection, model.info.joint_fingerprint, [content.key for content in wanted])
    missing = [content for content in wanted if content.key not in known]
    pool = context.runtime.prepare_pools[context.priority]
    started = [pool.submit(context.job.tenant, _prepare, context, loaded, content) for content in missing]
    # Preparing gives the future of the forward pass, or the item's error; waiting for that gives the vector.
    raws = context.gather(context.gather(started))
    computed = {
        content.key: finished(model, content.operation, raw) for content, raw in zip(missing, raws, strict=True)
    }
    good = {key: vectors_to_bytes(value) for key, value in computed.items() if not isinstance(value, ItemError)}
    store_vectors(db, model.info.joint_fingerprint, good)
    return {**{key: vectors_from_bytes(raw, 1)[0] for key, raw in known.items()}, **computed}


def _prepare(context: Context[Any], loaded: LoadedModel, content: Content) -> Future[Any]:
    """In the prepare pool: decode and resize beside the forward pass, then queue for it."""
    model = loaded.model
    item: Any = content.text
    if content.operation is Operation.EMBED_IMAGE:
        item = image_bytes(context.runtime, content)
    with context.watched("preparing an item"):
        if isinstance(item, bytes):
            item = decode_image(item, context.runtime.image_limits, target_side=model.info.image_size)
        prepared = model.prepare(content.operation, item)
    return loaded.batcher.submit(
        content.operation, prepared, context.priority, alone=context.alone, owner=context.lease
    )
