"""Every setting of revln, built once at each entry point and passed on.

A setting is read from ``REVLN_<NAME>``. An unknown ``REVLN_*`` name or a wrong value stops start-up. Secrets are masked
in ``repr``. ``docs/settings.md`` has a row for each; a test holds that.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from revln.addresses import check_blob_url, check_http_url, parse_redis_url, set_by_kubernetes
from revln.errors import SettingsError

__all__ = ["ENV_PREFIX", "ModelSettings", "Settings"]

ENV_PREFIX = "REVLN_"


class ModelSettings(BaseModel):
    """Where one named model comes from, and how it runs; see ``docs/models.md``."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    family: str = "auto"  # found out from the checkpoint's config.json
    source: str = Field(min_length=1)  # a folder, a .safetensors file, or a hub id
    revision: str | None = None  # of a hub id: a branch, a tag, or best a commit; None: main as it is now
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto: REVLN_DEVICE
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "float32"  # auto: half as wide on a GPU
    # Least cosine of a retrieved caption that may be evidence; None: what the checkpoint says, which only revln's do.
    evidence_min_score: float | None = Field(None, ge=-1, le=1)
    # What a sentence encoder puts before texts that are asked with, and found; None: what the checkpoint says.
    query_prompt: str | None = Field(None, max_length=2_000)
    document_prompt: str | None = Field(None, max_length=2_000)

    @field_validator("query_prompt", "document_prompt")
    @classmethod
    def _utf8(cls, prompt: str | None) -> str | None:
        if prompt is not None:
            prompt.encode()  # half a surrogate pair cannot be shown
        return prompt


class Settings(BaseModel):
    """One frozen object; see ``docs/settings.md``. The descriptions here are that page's rows."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    # Where things are
    data_dir: Path = Field(Path("revln-data"), description="Folder for whatever has no place of its own below.")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="SQLAlchemy URL. Empty: SQLite in the data folder. PostgreSQL: postgresql+psycopg://…",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="The broker: redis://, rediss:// or redis+socket:///path."
    )
    redis_ca_file: str = Field(
        "",
        description="PEM file of a CA that may have signed the certificate of a rediss:// server, beside the system's.",
    )
    redis_prefix: str = Field(
        "",
        description="What every key and channel on Redis begins with. Installations that share a Redis need one each "
        "(photos:, texts:).",
    )
    blob_url: str = Field(
        "", description="Where bytes are kept: file:///…, s3://bucket/prefix. Empty: the data folder."
    )

    # The API
    api_host: str = Field("127.0.0.1", description="Address the API listens on. Off loopback an API key is demanded.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port of the API.")
    api_key: SecretStr = Field(SecretStr(""), description="Bearer key that every call but /healthz must carry.")
    cors_origins: str = Field(
        "",
        description="Comma-separated origins whose pages may call the API (https://app.example.org). Empty: none.",
    )
    api_threads: int = Field(32, ge=1, le=1024, description="Threads for the API's database work; waiting takes none.")
    trusted_proxies: str = Field(
        "",
        description="Comma-separated addresses or networks of proxies whose X-Forwarded-For is believed. Empty: none.",
    )
    public_url: str = Field("", description="Prefix of the links in answers. Empty: they are relative.")
    max_body_bytes: int = Field(25 * 2**20, ge=1024, description="Largest request body; larger answers 413.")
    body_memory_bytes: int = Field(
        2**29,
        ge=2**20,
        description="Most memory for the bodies that one process reads and parses at once; above it 503.",
    )
    max_connections: int = Field(
        2_000, ge=1, description="Most connections that one API process keeps open; requests on more answer 503."
    )
    max_manifest_bytes: int = Field(4 * 2**30, ge=1024, description="Largest manifest upload.")
    max_job_items: int = Field(1_000_000, ge=1, description="Most items in one job; above that, submit several.")
    max_caption_tokens: int = Field(
        100_000_000,
        ge=1,
        description="Most tokens that one caption job may generate: items × num_beams (or num_captions, sampled) × "
        "max_new_tokens.",
    )
    max_queued_items: int = Field(
        20_000_000, ge=1, description="Most items waiting in all; above that a submission answers 429 with Retry-After."
    )
    max_queued_bytes: int = Field(
        64 * 2**30, ge=0, description="Most bytes that jobs not yet ended came with, in all. 0: no limit."
    )
    requests_per_s: float = Field(
        0.0, ge=0, description="Most requests of one key a second, over ten seconds; above that 429. 0: no limit."
    )
    tenant_max_queued_items: int = Field(0, ge=0, description="Most items waiting of one tenant. 0: no limit.")
    tenant_max_queued_bytes: int = Field(
        0, ge=0, description="Most bytes that a tenant's jobs not yet ended came with. 0: no limit."
    )
    tenant_max_stored_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of pictures and manifests that a tenant may have stored; above that 507. 0: no limit.",
    )
    max_stored_bytes: int = Field(0, ge=0, description="The same of all tenants together. 0: no limit.")
    min_free_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="Bytes of the blobs' disk that stay free: below that uploads and jobs are "
        "answered 507, so that the database goes on. 0: none.",
    )
    max_wait_s: float = Field(60.0, ge=0, le=600, description="Longest `Prefer: wait=N` or `?wait=N` honoured.")

    # Pictures and URLs
    max_image_pixels: int = Field(40_000_000, ge=1, description="Largest picture decoded, in pixels.")
    image_memory_bytes: int = Field(
        400_000_000, ge=1, description="Most memory for pictures that one process decodes at once; others wait."
    )
    fetch_urls: bool = Field(False, description="Whether workers fetch image URLs. Off: such items fail, saying so.")
    fetch_timeout_s: float = Field(10.0, gt=0, le=600, description="Longest fetch of one URL, in all.")
    fetch_max_bytes: int = Field(25 * 2**20, ge=1024, description="Most bytes read from one URL.")
    fetch_private_addresses: bool = Field(
        False, description="Whether a URL may lead to a private or loopback address. On only in a closed network."
    )

    # Webhooks
    webhook_private_addresses: bool = Field(
        False, description="Whether a webhook may go to a private or loopback address. On only in a closed network."
    )
    webhook_timeout_s: float = Field(15.0, gt=0, le=60, description="Longest that one request to a receiver may take.")
    webhook_progress_s: float = Field(
        10.0, ge=1, le=86_400, description="Least time between two job.progress webhooks of one job."
    )
    webhook_concurrency: int = Field(16, ge=1, le=256, description="Webhooks that one worker sends at once.")
    webhook_concurrency_per_host: int = Field(
        4, ge=1, le=256, description="Of these, most to one tenant's receiver (scheme, host and port)."
    )
    webhook_retention_s: float = Field(
        7 * 86_400, ge=60, description="How long a delivery stays in the log once it was made or given up."
    )

    # Models
    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description='JSON, name → {"source", "family", "revision", "device", "dtype", "evidence_min_score", '
        '"query_prompt", "document_prompt"}; see models.md. revln-tiny is always there.',
    )
    default_model: str = Field("revln-tiny", description="The model of a job that names none.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run. auto: cuda if it works.")
    model_memory_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of model weights that one worker holds on a device; the least used is unloaded for a "
        "new one. 0: half of the host's memory, four fifths of a GPU's.",
    )
    torch_threads: int = Field(0, ge=0, le=256, description="Processor threads of one forward pass. 0: all cores.")

    # Workers
    queues: str = Field("", description="Comma-separated queues of a worker (embed.bulk, search.*). Empty: all.")
    concurrency: int = Field(8, ge=1, le=256, description="Chunks that one worker runs at once, each in a thread.")
    prepare_threads: int = Field(0, ge=0, le=256, description="Threads that decode pictures. 0: one for each core.")
    batch_max: int = Field(0, ge=0, le=4096, description="Largest batch. 0: what the model says for its device.")
    batch_wait_ms: float = Field(4.0, ge=0, le=1000, description="How long a batch waits to be filled.")
    lease_s: float = Field(30.0, ge=1, description="How long a chunk stays a worker's without a heartbeat.")
    heartbeat_s: float = Field(
        10.0, gt=0, le=20, description="How often leases are renewed; at most a third of lease_s, and 20."
    )
    stall_s: float = Field(
        300.0,
        gt=0,
        description="Work that stands still for this long has hung: its worker ends itself.",
    )
    deaf_s: float = Field(
        30.0,
        ge=1,
        description="A worker that has not heard its own messages for this long, though Redis answers and a thread is "
        "free, ends itself.",
    )
    max_crashes: int = Field(3, ge=1, description="How often a chunk may kill its worker before it is dead.")
    shutdown_grace_s: float = Field(25.0, gt=0, description="From SIGTERM to handing running chunks back.")
    visibility_timeout_s: int = Field(
        21_600, ge=60, description="When Redis delivers an unacknowledged message again; more than any chunk's timeout."
    )

    # Indexes
    index_recall: float = Field(
        0.97, gt=0, le=1, description="Least recall@10 of a built index, measured on vectors held out of its training."
    )
    index_memory_bytes: int = Field(
        8 * 2**30, ge=2**20, description="Most memory that one collection's index may take; auto chooses by it."
    )
    index_flat_rows: int = Field(
        20_000, ge=0, description="Up to so many items, the index of type auto is flat: every vector is looked at."
    )
    index_tail_rows: int = Field(
        50_000,
        ge=0,
        description="A snapshot is built by itself when the log has so many rows past the newest one. 0: never.",
    )
    index_snapshots: int = Field(3, ge=1, description="Snapshots of a collection that are kept, for rollback.")

    # The sweeper
    sweep_s: float = Field(2.0, gt=0, description="How often lost leases, unpublished chunks and ends are looked for.")
    republish_s: float = Field(
        5.0, gt=0, description="A published chunk that nobody claimed is published again after this."
    )
    publish_window: int = Field(256, ge=1, description="Most chunks of one queue on Redis at once.")
    retention_s: float = Field(7 * 86_400, ge=1, description="How long a finished job and its result are kept.")
    upload_retention_s: float = Field(
        30 * 86_400,
        ge=86_400,
        description="How long an uploaded picture or manifest is kept once no job and no item needs it.",
    )
    embedding_retention_s: float = Field(
        30 * 86_400, ge=0, description="How long a computed vector is kept to spare computing it again."
    )
    audit_retention_s: float = Field(365 * 86_400, ge=86_400, description="How long the audit log goes back.")

    # Flower and logs
    flower_host: str = Field("127.0.0.1", description="Address of Flower.")
    flower_port: int = Field(5555, ge=0, le=65535, description="Port of Flower.")
    flower_basic_auth: SecretStr = Field(SecretStr(""), description="user:password for Flower; demanded off loopback.")
    flower_url: str = Field("", description="Flower's address as a browser sees it, for a job's `urls.flower`.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("models", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        return json.loads(value or "{}") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_s * 3 > self.lease_s:
            raise ValueError(
                f"heartbeat_s={self.heartbeat_s:g} must be at most a third of lease_s={self.lease_s:g}: two heartbeats "
                "may be lost before a lease is"
            )
        if self.stall_s <= self.lease_s:
            raise ValueError(f"stall_s={self.stall_s:g} must exceed lease_s={self.lease_s:g}")
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: str) -> str:
        for proxy in _listed(value):
            ip_network(proxy, strict=False)  # its error names it
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in _listed(value):
            # Not "*": that is every page on the web.
            if not re.fullmatch(r"https?://[^/*?#@\s]+", origin):
                raise ValueError(f"{origin!r} is not an origin; one reads https://app.example.org, without a path")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr) -> SecretStr:
        for file in parse_redis_url(value.get_secret_value()).tls_files.values():
            _readable(file)
        return value

    @field_validator("redis_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        # It also stands in patterns, where *, ?, [ and \ mean something else.
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,64}", value):
            raise ValueError(f"{value[:80]!r} is no prefix; it has up to 64 letters, digits and _ . : - only")
        return value

    @field_validator("blob_url")
    @classmethod
    def _blobs(cls, value: str) -> str:
        return check_blob_url(value)

    @field_validator("public_url", "flower_url")
    @classmethod
    def _links(cls, value: str) -> str:
        return check_http_url(value)

    @field_validator("api_key")
    @classmethod
    def _key(cls, value: SecretStr) -> SecretStr:
        # It travels in a header, where other signs are written in more than one way.
        if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
            raise ValueError("a key has letters, digits and signs of ASCII only, no blanks; `openssl rand -hex 32`")
        return value

    @field_validator("redis_ca_file")
    @classmethod
    def _ca(cls, value: str) -> str:
        return _readable(value) if value else value

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read the environment once.

        Raises:
            SettingsError: an unknown REVLN_* name (with the nearest known one) or a wrong value.
        """
        env = os.environ if env is None else env
        values: dict[str, Any] = {}
        for name, value in env.items():
            if not name.startswith(ENV_PREFIX) or set_by_kubernetes(name, value):
                continue
            field = name.removeprefix(ENV_PREFIX).lower()
            if field not in cls.model_fields:
                near = difflib.get_close_matches(field, cls.model_fields, n=1)
                hint = f" Did you mean {ENV_PREFIX}{near[0].upper()}?" if near else " See docs/settings.md."
                raise SettingsError(f"{name} is not a setting of revln.{hint}")
            values[field] = value
        values.update({name: value for name, value in overrides.items() if value is not None})
        try:
            return cls(**values)
        except ValidationError as err:
            # Never the value itself: it may be a secret.
            wrong = "; ".join(f"{_env_name(error['loc'])}: {error['msg']}" for error in err.errors())
            raise SettingsError(f"{wrong}. See docs/settings.md.") from None

    def to_env(self) -> dict[str, str]:
        """The environment that makes a child process see these very settings."""
        env: dict[str, str] = {}
        for name, value in self.model_dump(mode="python").items():
            if name == "models":
                text = json.dumps(value)
            elif isinstance(value, SecretStr):
                text = value.get_secret_value()
            else:
                text = str(value)
            env[ENV_PREFIX + name.upper()] = text
        return env

    # The places that follow from the data folder, unless they were named.

    @property
    def resolved_database_url(self) -> str:
        given = self.database_url.get_secret_value()
        return given or f"sqlite:///{self.data_dir.resolve() / 'revln.db'}"

    @property
    def resolved_blob_url(self) -> str:
        return self.blob_url or f"file://{self.data_dir.resolve() / 'blobs'}"

    @property
    def resolved_redis_url(self) -> str:
        return self.redis_url.get_secret_value()

    @property
    def cors_origin_list(self) -> list[str]:
        return _listed(self.cors_origins)

    @property
    def trusted_proxy_list(self) -> list[str]:
        return _listed(self.trusted_proxies)

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _readable(file: str) -> str:
    """Raises ValueError."""
    try:
        Path(file).open("rb").close()
    except (OSError, ValueError) as err:
        raise ValueError(f"the file {file!r} cannot be read: {getattr(err, 'strerror', err)}") from None
    return file


def _listed(value: str) -> list[str]:
    return [one.strip() for one in value.split(",") if one.strip()]


def _env_name(location: tuple[int | str, ...]) -> str:
    """The variable, and the place in its JSON."""
    if not location:
        return "settings"
    name, place = ENV_PREFIX + str(location[0]).upper(), ".".join(map(str, location[1:]))
    return f"{name}, {place}" if place else name
