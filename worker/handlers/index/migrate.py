"""migrate: embed a collection by another model beside the generation that serves, then let that one serve.

Searches and changes go on meanwhile. The shadow follows the serving log; each step is fenced and committed, so a run
that was cut off goes on where it stopped. While a shadow is being made, upserts embed by its model too
(`prepare_next`), so that in the end all that is left has its vectors and is appended under the row lock, in the
transaction of the swap, which is the one that ends the job.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from revln.db.collections.collections import Collection
from revln.db.collections.generations import (
    Changes,
    Role,
    begin_generation,
    changes_after,
    follow,
    lock_heads,
    missing_items,
    older_migration,
    shadows_of,
    swap,
)
from revln.db.collections.log import LogEntry
from revln.db.embeddings import cached_vectors
from revln.db.jobs.chunks import hold_chunk
from revln.db.jobs.results import vectors_to_bytes
from revln.db.uploads.uploads import own_uploads
from revln.errors import Conflict, ItemError, ItemInvalid, ModelUnavailable, Unavailable
from revln.jobs.index_schemas import MigrateParameters
from revln.models.base import Operation
from worker.context import Again, Context, Done, Outcome
from worker.embedding import Content, embed, own_contents, text_content
from worker.handlers.index.collection import open_serving
from worker.models.loading import LoadedModel

__all__ = ["prepare_next", "run_migrate"]

log = logging.getLogger(__name__)

_TOGETHER = 256  # rows of a step; one that was cut off is done again, mostly from vectors that are kept
_LAST_ROWS = 1_000  # as many may be left for the transaction of the swap, with their vectors at hand

_Row = dict[str, Any]


def run_migrate(context: Context[MigrateParameters]) -> Done:
    collection = open_serving(context)
    assert context.job.model is not None
    loaded = context.runtime.models.get(context.job.model, context.job.model_fingerprint)
    info = loaded.model.info
    if info.dim is None:
        raise ModelUnavailable(f"Model {info.name} makes no vectors.")
    if collection.model_fingerprint == info.joint_fingerprint:
        return Done([_migrated(collection, collection, 0)])
    with context.runtime.db.write() as connection:
        hold_chunk(connection, context.claim)
        if (rival := older_migration(connection, context.job)) is not None:
            raise Conflict(_RIVAL.format(context.job.collection, *rival, context.job.model))
        shadow = begin_generation(connection, collection.id, info.name, info.joint_fingerprint, info.dim)
    errors: dict[str, ItemError] = {}
    _catch_up(context, loaded, shadow, errors)
    _try_missing(context, loaded, shadow, errors)
    context.runtime.indexes.caught_up(shadow)  # in memory before the first search asks for it

    def apply(connection: Connection, _: list[Outcome]) -> list[Outcome]:
        return _finish(connection, context, shadow, loaded, errors)

    return Done([], apply)


_RIVAL = (
    "Collection {!r} is being migrated to {} by job {} already. One migration at a time: wait for that one, or cancel "
    "it, and then migrate to {}."
)


def prepare_next(context: Context[Any], collection: Collection, contents: list[Content | ItemError]) -> None:
    """Compute the vectors that a generation in the making will need of what is about to be written."""
    with context.runtime.db.read() as connection:
        coming = [one for one in shadows_of(connection, collection.id) if one.shadow_role != Role.FORMER]
    for shadow in coming:
        try:
            embed(context, context.runtime.models.get(shadow.model, shadow.model_fingerprint), contents)
        except (ModelUnavailable, Unavailable) as err:  # the migration will compute it
            log.warning("collection %s: %s", collection.name, err.message)


def _catch_up(context: Context[Any], loaded: LoadedModel, shadow: Collection, errors: dict[str, ItemError]) -> None:
    assert shadow.shadow_of is not None
    db = context.runtime.db
    with db.read() as connection:
        found = [one for one in shadows_of(connection, shadow.shadow_of) if one.id == shadow.id]
    at = (found[0].shadow_seq or 0) if found else 0
    while True:
        context.lease.check()
        with db.read() as connection:
            changes = changes_after(connection, shadow.shadow_of, at, _TOGETHER)
        if changes.last_seq == at:
            return
        made = _embedded(context, loaded, changes.live)
        entries = _entries(changes, made, errors, context.job.tenant)
        with db.write() as connection:
            hold_chunk(connection, context.claim)
            follow(connection, shadow, entries, at, changes.last_seq)
        at = changes.last_seq
        context.lease.progress()


def _try_missing(context: Context[Any], loaded: LoadedModel, shadow: Collection, errors: dict[str, ItemError]) -> None:
    """Once more, for what could not be embedded: an upload may have brought it, and earlier runs' errors are lost."""
    after: str | None = None
    while True:
        context.lease.check()
        with context.runtime.db.read() as connection:
            rows = missing_items(connection, shadow, _TOGETHER, after)
        if not rows:
            return
        made: dict[str, NDArray[np.float32]] = {}
        for row, vector in zip(rows, _embedded(context, loaded, rows), strict=True):
            if isinstance(vector, ItemError):
                errors[row["item_id"]] = vector
            else:
                errors.pop(row["item_id"], None)
                made[row["item_id"]] = vector
        if made:
            _write_missing(context, shadow, [row for row in rows if row["item_id"] in made], made, after)
        after = rows[-1]["item_id"]
        context.lease.progress()


def _write_missing(
    context: Context[Any], shadow: Collection, rows: list[_Row], made: dict[str, NDArray[np.float32]], after: str | None
) -> None:
    """Append items that were left out before, if they are still missing and what they were."""
    with context.runtime.db.write() as connection:
        hold_chunk(connection, context.claim)
        _, now = lock_heads(connection, shadow)
        again = {row["item_id"]: row for row in missing_items(connection, shadow, _TOGETHER, after)}
        tenant = context.job.tenant
        entries = [_entry(row, made[row["item_id"]], tenant) for row in rows if again.get(row["item_id"]) == row]
        follow(connection, shadow, entries, now.shadow_seq or 0, now.shadow_seq or 0)


def _finish(
    connection: Connection,
    context: Context[MigrateParameters],
    shadow: Collection,
    loaded: LoadedModel,
    errors: dict[str, ItemError],
) -> list[Outcome]:
    """Append what is left and swap; or say what is missing. Raises Again: there is more to catch up with."""
    before, now = lock_heads(connection, shadow)
    at = now.shadow_seq or 0
    changes = changes_after(connection, before.id, at, _LAST_ROWS)
    contents = [_content(row, context.job.tenant) for row in changes.live]
    good = [content for content in contents if isinstance(content, Content)]
    known = cached_vectors(connection, shadow.model_fingerprint, [content.key for content in good])
    pictures = {content.image_sha256 for content in good if content.image_sha256}
    own = own_uploads(connection, context.job.tenant, "image", pictures)
    if not changes.whole or pictures - own or any(content.key not in known for content in good):
        raise Again
    vectors = [
        content if isinstance(content, ItemError) else np.frombuffer(known[content.key], dtype="<f4")
        for content in contents
    ]
    follow(connection, shadow, _entries(changes, vectors, errors, context.job.tenant), at, changes.last_seq)
    serving, now = lock_heads(connection, shadow)
    missing = [row["item_id"] for row in missing_items(connection, now, serving.count + 1)] if (
        serving.count > now.count
    ) else []  # fmt: skip
    if missing and not context.parameters.allow_missing:
        return _refused(serving, loaded, missing, errors)
    swap(connection, serving, now)
    return [_migrated(serving, now, len(missing)), *_missing(missing, errors)]


def _migrated(before: Collection, now: Collection, missing: int) -> Outcome:
    migration = {
        "model": now.model,
        "model_fingerprint": now.model_fingerprint,
        "former_model": before.model,
        "former_fingerprint": before.model_fingerprint,
        "items": now.count,
        "missing": missing,
    }
    return Outcome(0, fields={"seq": now.head_seq, "migration": migration})


def _refused(
    serving: Collection, loaded: LoadedModel, missing: list[str], errors: dict[str, ItemError]
) -> list[Outcome]:
    why = ItemInvalid(
        f"{len(missing)} of {serving.count} items cannot be embedded by {loaded.model.info.name}; each follows with "
        f"its reason. Collection {serving.name!r} is searched as before. Mend or delete them and migrate again, which "
        "goes on from here; or leave them out with allow_missing."
    )
    return [Outcome(0, error=why), *_missing(missing, errors)]


def _missing(missing: list[str], errors: dict[str, ItemError]) -> list[Outcome]:
    unknown = ItemError("It could not be embedded.")
    return [Outcome(at, id=one, error=errors.get(one, unknown)) for at, one in enumerate(missing, start=1)]


# --- items of the log, embedded again --------------------------------------------------------------------------------


def _content(row: _Row, tenant: str) -> Content | ItemError:
    """What the item's vector was made of, as far as it is still here."""
    kind = str(row["content_key"] or "").partition(":")[0]
    if row["image_sha256"] is not None:
        return Content("image:" + row["image_sha256"], Operation.EMBED_IMAGE, image_sha256=row["image_sha256"])
    if kind == "text" and row["text"]:
        return text_content(row["text"], tenant)
    return ItemInvalid("Its vector was brought along and its picture is not here, so no other model can read it.")


def _embedded(context: Context[Any], loaded: LoadedModel, rows: list[_Row]) -> list[NDArray[np.float32] | ItemError]:
    return embed(context, loaded, own_contents(context, [_content(row, context.job.tenant) for row in rows]))


def _entry(row: _Row, vector: NDArray[np.float32], tenant: str) -> LogEntry:
    content = _content(row, tenant)
    assert isinstance(content, Content)
    return LogEntry(
        "upsert", row["item_id"], vector=vectors_to_bytes(vector), content_key=content.key, text=row["text"],
        metadata=row["metadata"], image_sha256=row["image_sha256"], position=row["position"],
    )  # fmt: skip


def _entries(
    changes: Changes, made: list[NDArray[np.float32] | ItemError], errors: dict[str, ItemError], tenant: str
) -> list[LogEntry]:
    """What the shadow's log takes up; an item that cannot be embedded is in it no longer, whatever it was before."""
    entries = [LogEntry("delete", item_id) for item_id in changes.gone]
    for row, vector in zip(changes.live, made, strict=True):
        if isinstance(vector, ItemError):
            errors[row["item_id"]] = vector
            entries.append(LogEntry("delete", row["item_id"]))
        else:
            errors.pop(row["item_id"], None)
            entries.append(_entry(row, vector, tenant))
    return entries
