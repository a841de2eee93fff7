"""How much may wait: the settings' quotas, and those of the caller's key."""

from __future__ import annotations

from api.problems import invalid
from revln.access import Caller
from revln.db.jobs.usage import Quotas, Usage
from revln.errors import PayloadTooLarge
from revln.settings import Settings

__all__ = ["quotas_of", "refuse_what_never_fits"]


def quotas_of(settings: Settings, caller: Caller) -> Quotas:
    return Quotas(
        key_items=caller.max_queued_items or 0,
        key_bytes=caller.max_queued_bytes or 0,
        tenant_items=settings.tenant_max_queued_items,
        tenant_bytes=settings.tenant_max_queued_bytes,
        items=settings.max_queued_items,
        size_bytes=settings.max_queued_bytes,
    )


def refuse_what_never_fits(quotas: Quotas, job: Usage, pointer: str) -> None:
    """A job larger than a whole quota: to come again later would not help.

    Raises ValidationFailed, PayloadTooLarge.
    """
    if quotas.least_items and job.items > quotas.least_items:
        raise invalid(pointer, f"{job.items:,} items; at most {quotas.least_items:,} of yours may wait: split the job")
    if quotas.least_bytes and job.size_bytes > quotas.least_bytes:
        raise PayloadTooLarge(
            f"This job came with {job.size_bytes:,} bytes; at most {quotas.least_bytes:,} of yours may wait. Split it."
        )
