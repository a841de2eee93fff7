"""Every error that revln raises on purpose.

RevlnError
├── SettingsError            a REVLN_* value is unknown or wrong; start-up stops
├── StartupError             a part could not start (port in use, no Redis binary)
├── UsersError               the caller can mend it; never retried
│   ├── ValidationFailed     the body breaks the schema; carries JSON pointers
│   ├── NotFound             no such job, image or collection
│   ├── Conflict             the thing exists, but not in a state that allows this
│   ├── IdempotencyMismatch  the same Idempotency-Key with another body
│   ├── PayloadTooLarge      more bytes than the limit
│   ├── BodyTooSlow          a body that does not come (retryable)
│   ├── UnsupportedMedia     a content type that the route does not read
│   ├── TooCostly            what is asked takes the database too long
│   ├── TooBusy              more waits than a quota allows; says when to come again (retryable) …
│   │   └── RateLimited      … or more is asked than a key may
│   ├── Unauthorized         no key, or a wrong one
│   └── Forbidden            a good key, but not for this …
│       └── InsufficientScope  … because it lacks a scope
├── ItemError                one item of a job cannot be done; its neighbours can
│   ├── ImageError           not an image, truncated, too large, an unlisted format
│   ├── FetchError           a URL that could not be fetched (retryable) …
│   │   └── FetchRefused     … or that we refuse to fetch
│   ├── OutOfMemory          there was no memory for it, even alone (retryable)
│   ├── ItemInvalid          the item breaks the schema (a manifest's line, a model that cannot read it)
│   └── ItemNotFound         the image or item id that it names does not exist
├── JobError                 a whole chunk or job cannot go on
│   ├── ModelUnavailable     the model's files are missing or it does not do this
│   ├── FingerprintMismatch  vectors of two models would meet
│   ├── JobCanceled          cooperative: seen at a batch boundary
│   ├── DeadlineExceeded     the job's deadline passed
│   └── WorkerLost           the chunk killed its worker too often
├── CollectionMoved          a migration put another generation in its place; the chunk is tried again (retryable)
├── LeaseLost                another worker holds the chunk now; drop what was computed
├── TimedOut                 a chunk ran longer than its kind allows; tried again, alone (retryable)
├── StorageFull              no room on the disk, or in what a tenant may store (retryable)
└── Unavailable              the database, Redis or the workers do not answer (retryable)

Each class has a stable ``code`` (part of the API), a ``retryable`` flag and a default message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "BodyTooSlow",
    "CollectionMoved",
    "Conflict",
    "DeadlineExceeded",
    "FetchError",
    "FetchRefused",
    "FieldError",
    "FingerprintMismatch",
    "Forbidden",
    "IdempotencyMismatch",
    "ImageError",
    "InsufficientScope",
    "ItemError",
    "ItemInvalid",
    "ItemNotFound",
    "JobCanceled",
    "JobError",
    "LeaseLost",
    "ModelUnavailable",
    "NotFound",
    "OutOfMemory",
    "PayloadTooLarge",
    "RateLimited",
    "RevlnError",
    "SettingsError",
    "StartupError",
    "StorageFull",
    "TimedOut",
    "TooBusy",
    "TooCostly",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
    "UsersError",
    "ValidationFailed",
    "WorkerLost",
]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong in a body: what, and where (RFC 6901 JSON pointer)."""

    detail: str
    pointer: str


class RevlnError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    default_message: ClassVar[str] = "Something went wrong inside revln."

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.default_message
        super().__init__(self.message)

    def as_dict(self) -> dict[str, Any]:
        """The form in which an error stands in a job's or an item's result."""
        return {"code": self.code, "detail": self.message, "retryable": self.retryable}


class SettingsError(RevlnError):
    code = "invalid_settings"
    default_message = "A setting is wrong."


class StartupError(RevlnError):
    code = "startup_failed"
    default_message = "A part of revln could not start."


class UsersError(RevlnError):
    code = "bad_request"
    default_message = "The request cannot be carried out as it stands."


class ValidationFailed(UsersError):
    code = "validation_failed"
    default_message = "The request breaks the schema."

    def __init__(self, message: str | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class NotFound(UsersError):
    code = "not_found"
    default_message = "There is no such thing."


class Conflict(UsersError):
    code = "conflict"
    default_message = "The state it is in does not allow this."


class IdempotencyMismatch(UsersError):
    code = "idempotency_mismatch"
    default_message = "This Idempotency-Key was used with another body. Use a new key for a new job."


class PayloadTooLarge(UsersError):
    code = "payload_too_large"
    default_message = "The body is larger than the limit."


class BodyTooSlow(UsersError):
    code = "body_too_slow"
    retryable = True
    default_message = "The body did not come in time."


class UnsupportedMedia(UsersError):
    code = "unsupported_media_type"
    default_message = "This content type is not read here."


class TooCostly(UsersError):
    code = "too_costly"
    default_message = "This takes the database too long."


class TooBusy(UsersError):
    code = "too_busy"
    retryable = True
    default_message = "Too much work is waiting."

    def __init__(self, message: str | None = None, retry_after_s: int = 60) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(TooBusy):
    code = "rate_limited"
    default_message = "This key asks too often."


class Unauthorized(UsersError):
    code = "unauthorized"
    default_message = "Send the API key as 'Authorization: Bearer …'."


class Forbidden(UsersError):
    code = "forbidden"
    default_message = "This key is not for that."


class InsufficientScope(Forbidden):
    code = "insufficient_scope"
    default_message = "This needs a key with another scope."

    def __init__(self, message: str | None = None, scope: str | None = None) -> None:
        super().__init__(message)
        self.scope = scope


class ItemError(RevlnError):
    code = "item_failed"
    default_message = "This item could not be done."


class ImageError(ItemError):
    code = "invalid_image"
    default_message = "These bytes are not an image that revln reads."


class FetchError(ItemError):
    code = "fetch_failed"
    retryable = True
    default_message = "The URL could not be fetched."


class FetchRefused(FetchError):
    code = "fetch_refused"
    retryable = False
    default_message = "This URL is not one that revln fetches."


class ItemInvalid(ItemError):
    code = "invalid_item"
    default_message = "This item breaks the schema."


class OutOfMemory(ItemError):
    code = "out_of_memory"
    retryable = True
    default_message = "There was not enough memory for it, even alone. Try it later, or on a larger machine."


class ItemNotFound(ItemError):
    code = "item_not_found"
    default_message = "What this item names does not exist."


class JobError(RevlnError):
    code = "job_failed"
    default_message = "The job could not be done."


class ModelUnavailable(JobError):
    code = "model_unavailable"
    default_message = "The model cannot be loaded."


class FingerprintMismatch(JobError):
    code = "fingerprint_mismatch"
    default_message = "The collection was made by another model; vectors of two models never meet."


class JobCanceled(JobError):
    code = "canceled"
    default_message = "The job was canceled."


class DeadlineExceeded(JobError):
    code = "deadline_exceeded"
    default_message = "The job's deadline passed before it was done."


class WorkerLost(JobError):
    code = "worker_lost"
    default_message = "The worker died while it ran this chunk, too often to try again."


class CollectionMoved(RevlnError):
    code = "collection_moved"
    retryable = True
    default_message = "A migration put another generation of the collection in its place meanwhile."


class LeaseLost(RevlnError):
    code = "lease_lost"
    default_message = "Another worker holds this chunk now."


class TimedOut(RevlnError):
    code = "timed_out"
    retryable = True
    default_message = "The chunk ran longer than its kind allows."


class StorageFull(RevlnError):
    code = "storage_full"
    retryable = True
    default_message = "There is no room to store this."


class Unavailable(RevlnError):
    code = "unavailable"
    retryable = True
    default_message = "The service cannot answer right now."

    def __init__(self, message: str | None = None, *, database: bool = False) -> None:
        super().__init__(message)
        self.database = database  # the database itself is away, busy or full: nobody's attempt is used up by that
