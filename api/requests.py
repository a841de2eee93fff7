"""Request bodies. The union of all kinds is made from `KINDS`, which is their only declaration."""

from __future__ import annotations

import functools
import operator
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Body
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model

from revln.jobs.kinds import KINDS, Priority
from revln.jobs.schemas import Metadata
from revln.jobs.webhooks import Webhook

__all__ = ["JobRequest", "Moment", "SubmitBody"]

MAX_DEADLINE_S = 30 * 86_400.0
MAX_RETENTION_S = 3_650 * 86_400.0


def _date_first(given: Any) -> Any:
    """pydantic takes a number, also as a text, for seconds since 1970."""
    if not isinstance(given, str) or not re.match(r"\d{4}-\d{2}-\d{2}", given):
        raise ValueError("a time is wanted as RFC 3339 has it, as in 2026-11-24T03:00:00Z")
    return given


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# A field or a query parameter; UTC if it names no zone.
Moment = Annotated[datetime, BeforeValidator(_date_first), AfterValidator(_in_utc)]


class SubmitBody(BaseModel):
    """What every kind of job may carry beside its input."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, frozen=True, protected_namespaces=()
    )

    kind: str
    input: BaseModel
    model: Annotated[str, Field(max_length=128)] | None = Field(None, description="A name from GET /v1/models.")
    priority: Priority = Field(Priority.NORMAL, description="Which queue: interactive, normal or bulk.")
    metadata: Metadata = Field(
        default_factory=dict, description="Yours; given back with the job. `tag` in it can be listed by."
    )
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None, description="Seconds from now after which the job expires."
    )
    starting_deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None, description="Seconds from now after which it expires if none of it has been started."
    )
    active_deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = Field(
        None, description="Seconds that it may run, from its first start."
    )
    webhook: Webhook | None = Field(None, description="Where to tell of its events; see docs/webhooks.md.")
    retention_s: Annotated[float, Field(ge=1, le=MAX_RETENTION_S)] | None = Field(
        None, description="Seconds that the finished job and its result are kept."
    )


def _tag(name: str) -> str:
    return f"({name})"


def _kind_of(body: Any) -> str | None:
    kind = body.get("kind") if isinstance(body, dict) else getattr(body, "kind", None)
    return _tag(kind) if isinstance(kind, str) else None


_BODIES: list[Any] = [
    Annotated[
        create_model(
            f"{kind.name.capitalize()}Job",
            __base__=SubmitBody,
            kind=(Literal[kind.name], ...),  # type: ignore[arg-type]
            input=(kind.input, ...),
        ),
        Tag(_tag(kind.name)),
    ]
    for kind in KINDS.values()
]

JobRequest: Any = Annotated[
    functools.reduce(operator.or_, _BODIES),
    Discriminator(
        _kind_of,
        custom_error_type="union_tag_unknown",
        custom_error_message=f"the kind of job must be one of {', '.join(KINDS)}",
    ),
    Body(
        openapi_examples={
            kind.name: {
                "summary": (kind.input.__doc__ or "").splitlines()[0],
                "value": {"kind": kind.name, "input": kind.input.model_json_schema()["examples"][0]},
            }
            for kind in KINDS.values()
        }
    ),
]
