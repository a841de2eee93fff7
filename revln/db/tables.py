"""Every table. Times are seconds since 1970 as float64, by the database's clock.

The counters of ``jobs`` (items and chunks) repeat what ``chunks`` says, so that a job can be read without counting a
million rows; whoever changes a chunk changes them in the same transaction (`revln.db.jobs.chunks`).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    false,
    text,
)

from revln.db.columns import Id, Json, Sha256, count_column, metadata, tenant_column, where

__all__ = [
    "accepted_changes", "api_keys", "audit", "chunks", "collections", "deliveries", "delivery_attempts",
    "disabled_webhooks", "embeddings", "events", "filter_deletes", "installation", "items", "job_uploads", "jobs",
    "metadata", "model_orders", "results", "retired_collections", "snapshots", "tenants", "tombstones", "uploads",
    "usage", "vectors", "webhook_secrets", "workers",
]  # fmt: skip

# Written out, so that both databases see that the index of such jobs serves a query.
MAY_STILL_WRITE = "accepted IS NOT NULL AND deleted_at IS NULL AND (status <> 'succeeded' OR failed > 0)"

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    tenant_column(),
    Column("key_id", Id),  # of the API key that handed it in, if one did
    Column("kind", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("model", String(128)),
    Column("model_fingerprint", String(128)),
    Column("collection", String(64)),
    Column("tag", String(256)),
    Column("input", Json, nullable=False),  # everything but the items, which the chunks carry
    Column("metadata", Json, nullable=False),
    Column("webhook", Json),  # url, events, and the seconds between two of progress
    *map(count_column, ("total", "succeeded", "failed", "chunks_queued", "chunks_running", "chunks_succeeded")),
    *map(count_column, ("chunks_dead", "chunks_canceled", "chunks_expired")),
    count_column("version"),  # raised by every change a client can see: the ETag
    Column("error", Json),
    Column("idempotency_key", String(255)),
    Column("request_sha256", Sha256),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("cancel_requested_at", Double),
    Column("deadline_at", Double),
    Column("deadline_s", Double),
    Column("active_deadline_s", Double),
    Column("retention_s", Double, nullable=False),
    Column("expires_at", Double),
    count_column("size_bytes"),  # of what came with it, for the quota of bytes
    Column("deleted_at", Double),  # nobody sees it any more; its rows go step by step (`revln.db.retention`)
    Column("accepted", BigInteger),  # its place among the tenant's jobs that change a collection
    Index("uq_jobs_tenant_idempotency_key", "tenant", "idempotency_key", unique=True),
    Index("ix_jobs_tenant_created_at_id", "tenant", "created_at", "id"),
    Index("ix_jobs_status_deadline_at", "status", "deadline_at"),
    Index("ix_jobs_expires_at", "expires_at"),
    Index("ix_jobs_deleted_at", "deleted_at"),
    # Small: of what may still write into its collection, now or after a retry (`revln.db.collections.order`).
    Index("ix_jobs_tenant_collection_accepted", "tenant", "collection", "accepted", **where(MAY_STILL_WRITE)),
)

# How many jobs that change a collection were accepted, of each tenant: the last one's ``accepted``.
accepted_changes = Table(
    "accepted_changes",
    metadata,
    Column("tenant", String(64), primary_key=True),
    count_column("last"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("queue", String(64), nullable=False),
    tenant_column(),
    count_column("turn"),  # in its queue: `revln.db.jobs.turns`
    Column("attempt", Integer, nullable=False, server_default=text("0")),  # the fencing token
    Column("max_attempts", Integer, nullable=False),
    Column("crash_count", Integer, nullable=False, server_default=text("0")),
    Column("lease_until", Double),
    Column("worker", String(128)),
    Column("run_at", Double, nullable=False),
    Column("published_at", Double),
    Column("first_index", BigInteger, nullable=False),
    Column("n_items", Integer, nullable=False),
    Column("items", Json),  # inline items; else a byte range of the job's manifest
    Column("source_offset", BigInteger),
    Column("source_length", BigInteger),
    count_column("succeeded"),
    count_column("failed"),
    Column("error", Json),
    Column("started_at", Double),
    Column("finished_at", Double),
    # Of what is queued alone: small however much has been done, and in the order in which it is done.
    Index("ix_chunks_queue_turn", "queue", "turn", "job_id", "number", **where("state = 'queued'")),
    Index("ix_chunks_queue_tenant_turn", "queue", "tenant", "turn", **where("state = 'queued'")),
    Index("ix_chunks_state_lease_until", "state", "lease_until"),
    Index("ix_chunks_finished_at", "finished_at"),
)

results = Table(
    "results",
    metadata,
    Column("job_id", Id, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("first_index", BigInteger, nullable=False),
    Column("n_items", Integer, nullable=False),
    Column("items", Json, nullable=False),
    Column("vectors", LargeBinary),  # (items with a vector, D) float32, little-endian, in the items' order
    ForeignKeyConstraint(["job_id", "number"], ["chunks.job_id", "chunks.number"], ondelete="CASCADE"),
    Index("ix_results_job_id_first_index", "job_id", "first_index"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(32), nullable=False),
    Column("data", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_events_job_id_id", "job_id", "id"),
)

# What is to be told to whom: written with the change it tells of, read by every worker
# (revln/db/webhooks/deliveries.py).
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),  # the webhook-id, the same at every attempt
    tenant_column(),
    Column("job_id", Id),  # no foreign key: the end of a job that is kept for a second is told all the same
    Column("type", String(32), nullable=False),
    Column("url", Text, nullable=False),
    Column("lane", String(352), nullable=False),  # the tenant and the URL's scheme, host and port
    Column("data", Json, nullable=False),
    Column("state", String(16), nullable=False),  # pending | delivered | failed | disabled
    Column("attempts", Integer, nullable=False, server_default=text("0")),  # the fencing token
    Column("earlier_attempts", Integer, nullable=False, server_default=text("0")),  # those before the last replay
    Column("due_at", Double, nullable=False),
    Column("lease_until", Double),
    Column("give_up_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),  # when what it tells of happened
    Column("settled_at", Double),
    Index("ix_deliveries_state_due_at_lane", "state", "due_at", "lane"),
    Index("ix_deliveries_job_id_created_at", "job_id", "created_at"),
    Index("ix_deliveries_tenant_created_at_id", "tenant", "created_at", "id"),
    Index("ix_deliveries_settled_at", "settled_at"),
)

delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column("delivery_id", String(40), ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double),  # none: under way, or its worker died and nobody knows what came of it
    Column("status", Integer),  # of HTTP, if there was an answer
    Column("error", Text),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("secret", String(128), nullable=False),  # as its receivers have it: a signature needs it as it is
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),  # of one that was replaced
)

disabled_webhooks = Table(  # URLs that answered 410: they want no more
    "disabled_webhooks",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("url_sha256", Sha256, primary_key=True),
    Column("disabled_at", Double, nullable=False),
)

embeddings = Table(
    "embeddings",
    metadata,
    Column("fingerprint", String(128), primary_key=True),
    Column("content_key", String(80), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_embeddings_created_at", "created_at"),
)

collections = Table(
    "collections",
    metadata,
    Column("id", Id, primary_key=True),  # a collection made again under an old name is another collection
    tenant_column(),
    Column("name", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("model_fingerprint", String(128), nullable=False),
    Column("dim", Integer, nullable=False),
    count_column("head_seq"),
    count_column("blanked_seq"),  # how far replaced rows have been: revln/db/collections/blanking.py
    count_column("count"),
    Column("metadata", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("snapshot_id", Id),  # the one that workers load; none: they replay the log from its beginning
    Column("shadow_of", Id),  # of a generation that does not serve (revln.db.collections.generations): whose it is
    Column("shadow_role", String(16)),
    Column("shadow_seq", BigInteger),  # the row of that one's log up to which it has followed
    Index("uq_collections_tenant_name", "tenant", "name", unique=True),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Id, primary_key=True),  # in the order in which they were begun; also what fences their builder
    Column("collection_id", Id, ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("state", String(16), nullable=False),  # building | ready | damaged
    Column("owner", String(128), nullable=False),  # the job that builds it
    Column("lease_until", Double),
    Column("type", String(16)),
    Column("factory", String(128)),  # in faiss's language
    Column("parameters", Json),  # how widely it is searched
    Column("up_to_seq", BigInteger),
    Column("count", BigInteger),
    Column("sha256", Sha256),  # of its file in the blob store
    Column("size_bytes", BigInteger),
    Column("recall", Double),  # recall@10 of held-out vectors, against exact search
    Column("qps", Double),  # single queries a second, on the machine that built it
    Column("exact_qps", Double),
    Column("build_s", Double),
    Column("created_at", Double, nullable=False),
    Index("ix_snapshots_collection_id_id", "collection_id", "id"),
    Index("ix_snapshots_sha256", "sha256"),
)

retired_collections = Table(  # whose vectors and items are still to be removed: revln/db/retention.py
    "retired_collections",
    metadata,
    Column("id", Id, primary_key=True),
    Column("retired_at", Double, nullable=False),
)

# These and ``items`` outlive their collection, until they are removed in steps: so they do not refer to it.
vectors = Table(
    "vectors",
    metadata,
    Column("collection_id", Id, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("op", String(8), nullable=False),  # upsert | delete
    Column("item_id", String(512), nullable=False),
    Column("replaces_seq", BigInteger),  # the row that this one makes void, so that replay needs no map of ids
    Column("content_key", String(80)),
    Column("vector", LargeBinary),  # (D,) float32, little-endian, unit norm
    Column("text", Text),
    Column("metadata", Json),
    Column("image_sha256", Sha256),
    Column("created_at", Double, nullable=False),
    Index("ix_vectors_image_sha256", "image_sha256", **where("image_sha256 IS NOT NULL")),
)

items = Table(
    "items",
    metadata,
    Column("collection_id", Id, primary_key=True),
    Column("item_id", String(512), primary_key=True),
    Column("seq", BigInteger, nullable=False),  # the live row of the log
    count_column("position"),  # of the change that made it so: revln/db/collections/order.py
)

# Of items that are gone: a change accepted before this one must not bring them back. Kept while there may be one.
tombstones = Table(
    "tombstones",
    metadata,
    Column("collection_id", Id, primary_key=True),
    Column("item_id", String(512), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Index("ix_tombstones_collection_id_position", "collection_id", "position"),
)

# Deletes by a filter that have begun: what was accepted before them and comes after is tested by it. Kept as long.
filter_deletes = Table(
    "filter_deletes",
    metadata,
    Column("collection_id", Id, primary_key=True),
    Column("accepted", BigInteger, primary_key=True, autoincrement=False),
    Column("filter", Json, nullable=False),
)

# What was uploaded, by whom. The bytes are stored once, whoever brings them; without a row here they are not there.
uploads = Table(
    "uploads",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("sha256", Sha256, primary_key=True),
    Column("kind", String(16), primary_key=True),  # image | manifest
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_used_at", Double, nullable=False),  # to the hour: revln/db/uploads/uploads.py
    Index("ix_uploads_kind_sha256", "kind", "sha256"),
    Index("ix_uploads_last_used_at", "last_used_at"),
)

job_uploads = Table(  # what a job names of its tenant's, written with it: revln/db/uploads/removal.py
    "job_uploads",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("sha256", Sha256, primary_key=True),
    Index("ix_job_uploads_sha256", "sha256"),
)

# What waits of each key, kept up to date with the jobs that it repeats: revln/db/jobs/usage.py.
usage = Table(
    "usage",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("key_id", String(36), primary_key=True),  # "": without a key
    count_column("queued_items"),
    count_column("queued_bytes"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),  # what was uploaded before the default one was, is that one's
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),  # the middle of rvl_<id>_<secret>
    Column("tenant", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("sha256", Sha256, nullable=False),  # of the secret, which is kept nowhere
    Column("scopes", Json, nullable=False),  # some of submit, read, admin
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),  # to the minute
    # Quotas of this key; none: the setting's.
    Column("max_queued_items", BigInteger),
    Column("max_queued_bytes", BigInteger),
    Column("requests_per_s", Double),
    Index("ix_api_keys_tenant_id", "tenant", "id"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("created_at", Double, nullable=False),
    Column("who", String(128), nullable=False),  # a key's id, or who acted without one
    Column("tenant", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("what", String(640), nullable=False),
    Column("address", String(64)),  # of the client, if it came over the network
    Index("ix_audit_tenant_id", "tenant", "id"),
    Index("ix_audit_created_at", "created_at"),
)

# Written by the API, read by every worker: revln/db/model_orders.py.
model_orders = Table(
    "model_orders",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("wanted", String(16), nullable=False),  # load | unload
    Column("number", Integer, nullable=False),
    Column("placed_at", Double, nullable=False),
)

# One row, made by the first process that asks for it: revln/db/installation.py.
installation = Table(
    "installation",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # 1
    Column("id", Id, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", Json, nullable=False),
    Column("device", String(32), nullable=False),
    Column("models", Json, nullable=False),  # the loaded ones
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("heard_at", Double),  # its own last message that came back to it through Redis
    Column("busy", Boolean, nullable=False, server_default=false()),  # no thread is free to hear one
)
