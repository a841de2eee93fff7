"""The form of what the API answers: openapi.json, /docs and `api.views` are made from it."""

from __future__ import annotations

import functools
import operator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from revln.access import Scope
from revln.jobs.kinds import KINDS, Priority
from revln.jobs.schemas import ItemFailure
from revln.jobs.state import ChunkState, JobStatus

__all__ = [
    "RESULTS",
    "AttemptAnswer",
    "AuditEntryAnswer",
    "AuditPage",
    "ChunkAnswer",
    "CollectionAnswer",
    "CollectionPage",
    "CollectionsAnswer",
    "DeliveryAnswer",
    "DeliveryDetail",
    "DeliveryPage",
    "EnabledAnswer",
    "GenerationAnswer",
    "GenerationsAnswer",
    "ImageAnswer",
    "JobAnswer",
    "JobDoneAnswer",
    "JobPage",
    "KeyAnswer",
    "KeysAnswer",
    "ManifestAnswer",
    "ModelAnswer",
    "ModelOrderAnswer",
    "ModelsAnswer",
    "NewKeyAnswer",
    "Problem",
    "ReadyAnswer",
    "ReplayAnswer",
    "SecretAnswer",
    "SecretsAnswer",
    "SnapshotAnswer",
    "SnapshotsAnswer",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Counts(_Answer):
    """Items, not chunks."""

    total: int
    succeeded: int
    failed: int


class Urls(_Answer):
    self: str
    cancel: str
    result: str
    events: str
    flower: str | None


class WebhookAnswer(_Answer):
    url: str
    events: list[str]


class JobAnswer(_Answer):
    """A job. Times are RFC 3339 in UTC."""

    id: str
    kind: str
    status: JobStatus
    done: bool = Field(description="Whether it has ended: nothing changes any more unless somebody asks for a retry.")
    priority: Priority
    model: str | None = Field(description="Null for work on a collection of your own vectors.")
    model_fingerprint: str
    collection: str | None
    counts: Counts
    progress: float = Field(description="Finished items through all items, 0 to 1.")
    queue_position: int | None = Field(description="Jobs of its queue that are ahead; null once it has started.")
    eta_s: float | None = Field(description="Seconds to its end at the rate so far; null until something is done.")
    created_at: str
    started_at: str | None
    finished_at: str | None
    cancel_requested_at: str | None
    deadline_at: str | None = Field(description="When it expires; it may be another moment once it has started.")
    expires_at: str | None = Field(description="When the finished job and its result are removed.")
    error: ItemFailure | None = Field(description="Why the job as a whole failed.")
    metadata: dict[str, Any]
    webhook: WebhookAnswer | None = Field(description="Where its events are told, as it was handed in with.")
    urls: Urls


class ChunkAnswer(_Answer):
    """A piece of a job: what is delivered, leased and tried again as one."""

    number: int
    state: ChunkState
    first_index: int
    counts: Counts
    attempt: int = Field(description="How often it was claimed.")
    attempts_left: int = Field(description="How many failures more it may have; crashes are counted apart.")
    crashes: int = Field(description="How often a worker died or hung while it ran this.")
    worker: str | None
    run_at: str | None = Field(description="When a queued one is run at the earliest.")
    lease_until: str | None
    started_at: str | None
    finished_at: str | None
    error: ItemFailure | None = Field(description="What went wrong the last time.")


class ChunkPage(_Answer):
    chunks: list[ChunkAnswer]
    next_cursor: str | None


RESULTS: Any = functools.reduce(operator.or_, (kind.result for kind in KINDS.values()))


class JobDoneAnswer(JobAnswer):
    """A job that ended within `Prefer: wait`, with the first 1,000 items of its result."""

    result: RESULTS


class JobPage(_Answer):
    jobs: list[JobAnswer]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class AttemptAnswer(_Answer):
    number: int
    started_at: str
    finished_at: str | None = Field(description="Null: it is under way, or its worker died and nobody knows.")
    status: int | None = Field(description="What the receiver answered; null if it did not.")
    error: str | None


class DeliveryAnswer(_Answer):
    """One event on its way to one receiver. `id` is the webhook-id, the same at every attempt."""

    id: str
    job_id: str | None = Field(description="Null for a test.")
    type: str
    url: str
    state: str = Field(description="pending, delivered, failed (no try is left), or disabled (it answered 410).")
    attempts: list[AttemptAnswer]
    next_try_at: str | None = Field(description="Null once it is settled.")
    created_at: str
    settled_at: str | None


class DeliveryDetail(DeliveryAnswer):
    data: dict[str, Any] = Field(description="What the event tells.")


class DeliveryPage(_Answer):
    webhooks: list[DeliveryAnswer]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class ReplayAnswer(_Answer):
    replayed: int = Field(description="How many events are due again.")


class EnabledAnswer(_Answer):
    url: str
    enabled: bool


class SecretAnswer(_Answer):
    secret: str
    created_at: str
    expires_at: str | None = Field(description="Of one that was replaced: until when it signs too.")


class SecretsAnswer(_Answer):
    secrets: list[SecretAnswer]


class ImageAnswer(_Answer):
    """`width` and `height` are those that a viewer sees, after the EXIF orientation."""

    sha256: str
    media_type: str
    width: int
    height: int
    size_bytes: int


class ManifestAnswer(_Answer):
    sha256: str
    lines: int
    size_bytes: int


class CollectionAnswer(_Answer):
    name: str
    model: str | None = Field(description="Null: it holds vectors of your own.")
    model_fingerprint: str
    dim: int
    count: int = Field(description="Items in it now.")
    head_seq: int = Field(description="The last row of its log.")
    metadata: dict[str, Any]
    created_at: str
    updated_at: str


class CollectionsAnswer(_Answer):
    collections: list[CollectionAnswer]


class SnapshotAnswer(_Answer):
    id: str
    current: bool = Field(description="Whether searches begin with it.")
    state: str = Field(description="ready; or damaged: its file was not what it was, and it is not used.")
    type: str
    factory: str = Field(description="In faiss's language.")
    parameters: dict[str, Any]
    up_to_seq: int = Field(description="The last row of the log that is in it; what came since is searched exactly.")
    count: int
    recall: float = Field(description="recall@10 of the collection's own held-out vectors, against exact search.")
    qps: float = Field(description="Single queries a second on the machine that built it.")
    exact_qps: float = Field(description="The same, looking at every vector.")
    build_s: float
    sha256: str
    size_bytes: int
    created_at: str


class SnapshotsAnswer(_Answer):
    snapshots: list[SnapshotAnswer]


class GenerationAnswer(_Answer):
    """The same items by one model. `serving` is what is searched, `next` is being made to serve, `former` served before
    the last migration, `returning` is being caught up to serve again."""

    role: str
    model: str | None
    model_fingerprint: str
    dim: int
    count: int
    head_seq: int
    up_to_seq: int | None = Field(description="The row of the serving one's log up to which it is the same.")
    created_at: str


class GenerationsAnswer(_Answer):
    generations: list[GenerationAnswer]


class ImageOf(_Answer):
    sha256: str


class CollectionItem(_Answer):
    id: str
    seq: int
    text: str | None
    metadata: dict[str, Any]
    image: ImageOf | None
    vector_b64: str | None = None


class CollectionPage(_Answer):
    items: list[CollectionItem]
    next_cursor: str | None


class ModelInWorker(_Answer):
    """A model in one worker; what follows `order` is there while it is loaded."""

    worker: str
    state: str = Field(description="loading, loaded, unloading, unloaded, or failed: then `error` says why.")
    order: int = Field(description="The last order to load or unload it that this worker has carried out.")
    device: str | None = None
    dtype: str | None = None
    batch: dict[str, int] | None = Field(None, description="The largest batch now, by operation.")
    size_bytes: int | None = Field(None, description="Of its weights.")
    chunks: int | None = Field(None, description="Running chunks that use it.")
    error: ItemFailure | None = None


class PromptsAnswer(_Answer):
    query: str = Field(description="What stands before a text that is asked with.")
    document: str = Field(description="What stands before a text that is found.")


class ModelAnswer(_Answer):
    name: str
    default: bool
    family: str | None = None
    operations: list[str] | None = None
    dim: int | None = None
    fingerprint: str | None = None
    joint_fingerprint: str | None = None
    max_tokens: int | None = Field(
        None, description="Of a text, with its prompt and what the model adds; longer is cut."
    )
    prompts: PromptsAnswer | None = Field(None, description="Of a sentence encoder.")
    parameters: int | None = None
    license: str | None = None
    has_confidence: bool | None = Field(None, description="Its captions say how likely they are right.")
    loaded: bool | None = None
    workers: list[ModelInWorker] | None = None
    error: ItemFailure | None = None


class ModelsAnswer(_Answer):
    models: list[ModelAnswer]


class ModelOrderAnswer(_Answer):
    """An order that was written down for every worker."""

    name: str
    wanted: str = Field(description="load or unload")
    order: int = Field(description="Done in a worker when the `order` in the model's `workers` has come to this.")
    workers: list[str] = Field(description="Those that were alive when it was placed.")


class KeyAnswer(_Answer):
    """An API key, without its secret. Quotas of null: what the service's settings say."""

    id: str
    tenant: str
    name: str
    scopes: list[Scope]
    live: bool = Field(description="Neither revoked nor expired.")
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None = Field(description="To the minute.")
    max_queued_items: int | None
    max_queued_bytes: int | None
    requests_per_s: float | None


class NewKeyAnswer(KeyAnswer):
    key: str = Field(description="What to send as `Authorization: Bearer …`. It is shown this once.")


class KeysAnswer(_Answer):
    keys: list[KeyAnswer]


class AuditEntryAnswer(_Answer):
    id: int
    at: str
    who: str = Field(description="A key's id; or bootstrap (REVLN_API_KEY), owner (no key is set), worker, cli:USER.")
    tenant: str
    action: str
    what: str
    address: str | None


class AuditPage(_Answer):
    entries: list[AuditEntryAnswer]
    next_cursor: str | None


class WorkerState(_Answer):
    id: str
    state: str = Field(description='"hears", "busy" (all its threads are taken), or what is wrong with it.')


class ReadyAnswer(_Answer):
    """Each part is "ok", or what is wrong with it."""

    ready: bool
    database: str
    redis: str
    worker: str
    workers: list[WorkerState] = Field(description="Those heard of within 30 s.")


class FieldProblem(_Answer):
    detail: str
    pointer: str = Field(description="RFC 6901, into the body; or the name of a query parameter or header.")


class Problem(_Answer):
    """RFC 9457. `code` is stable; `errors` comes with `validation_failed`, a hundred at most."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    errors: list[FieldProblem] | None = None
