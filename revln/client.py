"""A small client of revln's HTTP API.

    with RevlnClient("http://127.0.0.1:8000") as client:
        job = client.submit("embed", {"items": [{"text": "a dog in the snow"}]})
        job = client.wait(job["id"])
        vectors = client.result(job["id"])["items"]

Every call that is safe to repeat is repeated when the connection fails or the server is busy; a submission carries an
Idempotency-Key, so that a repeated one is the same job. Errors are those of ``revln.errors``, found by their ``code``.
"""

from __future__ import annotations

import json
import mimetypes
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, Self

from revln import errors
from revln.client_transport import FIRST_PAUSE_S, Transport, path_of
from revln.client_wire import Event, NotDoneInTime, error_of, list_of, sse_events

__all__ = ["Event", "Job", "RevlnClient"]

Job = dict[str, Any]

_SPOOLED_BYTES = 2**25  # of a manifest in memory; more is in a file
_BLOCK_BYTES = 2**20
LONG_POLL_S = 20.0  # under the idle timeouts of common proxies


class RevlnClient:
    """Synchronous; may be shared by threads.

    Args:
        url: where the API listens.
        api_key: sent as a bearer token.
        retry_for_s: how long a failing connection or a busy server is tried again, for one call. A connection that is
            refused before anybody has answered is not.
        as_asked: what a busy server asks to wait is waited, however long, and does not count towards ``retry_for_s``.
        on_wait: told of each wait that the server asked for: seconds, and the error.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        retry_for_s: float = 60.0,
        as_asked: bool = False,
        on_wait: Callable[[float, errors.RevlnError], object] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._transport = Transport(self.url, api_key, retry_for_s=retry_for_s, as_asked=as_asked, on_wait=on_wait)
        self._json, self._send = self._transport.json, self._transport.send

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # Jobs

    def submit(
        self,
        kind: str,
        input: Mapping[str, Any],
        *,
        wait_s: float = 0.0,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """Hand in a job; ``options`` are the body's other fields (model, priority, metadata, …).

        With ``wait_s`` the answer is held for that long and carries ``result`` if the job was done by then.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if wait_s:
            headers["Prefer"] = f"wait={wait_s:g}"
        body = {"kind": kind, "input": input, **{name: value for name, value in options.items() if value is not None}}
        return self._json("POST", "/v1/jobs", body=body, headers=headers, held_s=wait_s)

    def job(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        """The job as it is now, or as it is after ``wait_s`` seconds or a change, whichever comes first."""
        params = {"wait": f"{wait_s:g}"} if wait_s else None
        return self._json("GET", path_of("jobs", job_id), params=params, held_s=wait_s)

    def wait(self, job_id: str, timeout_s: float | None = None, on_update: Callable[[Job], None] | None = None) -> Job:
        """Long-poll until the job is done, whichever way it ended.

        Raises:
            NotDoneInTime: a TimeoutError; it was not done within ``timeout_s``, and goes on.
        """
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        while True:
            left_s = LONG_POLL_S if deadline is None else min(LONG_POLL_S, deadline - time.monotonic())
            job = self.job(job_id, wait_s=max(left_s, 0.0))
            if on_update:
                on_update(job)
            if job["done"]:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise NotDoneInTime(f"job {job_id} is still {job['status']} after {timeout_s:g} s; it goes on")

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Newest first, over all pages. Filters: status, kind, collection, tag, dead, created_after, limit."""
        yield from self._pages("/v1/jobs", "jobs", filters)

    def chunks(self, job_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """A job's chunks, over all pages: tries, crashes, errors. Filters: state, limit (of a page)."""
        yield from self._pages(path_of("jobs", job_id, "chunks"), "chunks", filters)

    def _pages(self, path: str, name: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._json("GET", path, params=params)
            yield from page[name]
            if not page.get("next_cursor"):
                return
            params["cursor"] = page["next_cursor"]

    def result(self, job_id: str, *, page_items: int = 1000) -> dict[str, Any]:
        """The whole result, put together from its pages; readable while the job runs."""
        whole: dict[str, Any] = {}
        for page in self.result_pages(job_id, page_items=page_items):
            if not whole:
                whole = page
            else:
                whole[list_of(page)] += page[list_of(page)]
        whole.pop("next_offset", None)
        return whole

    def result_pages(self, job_id: str, *, page_items: int = 1000) -> Iterator[dict[str, Any]]:
        """The result's pages, in order: for results that do not fit in memory."""
        offset = 0
        while True:
            params = {"offset": offset, "limit": page_items}
            page = self._json("GET", path_of("jobs", job_id, "result"), params=params)
            if page[list_of(page)] or not offset:
                yield page
            # By place, not by the number received: of a job that runs, or has expired, items in between are missing.
            # A server of before this was told goes on page by page.
            after = page.get("next_offset", offset + page_items)
            if after is None or after >= page["total"]:
                return
            offset = after

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
        """What happens to the job, from the beginning (or after ``last_event_id``) until its end."""
        started = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
            path = path_of("jobs", job_id, "events")
            try:
                with (
                    self._transport.translated(),
                    self._transport.http.stream("GET", path, headers=headers) as answer,
                ):
                    if not answer.is_success:
                        answer.read()
                        raise error_of(answer)
                    for event in sse_events(answer.iter_lines()):
                        last_event_id, started = event.id or last_event_id, time.monotonic()
                        yield event
                return  # the server closes the stream after the last event of a job that is done
            except errors.Unavailable:
                if time.monotonic() - started > self._transport.retry_for_s:
                    raise
                self._transport.pause(FIRST_PAUSE_S)

    def cancel(self, job_id: str) -> Job:
        return self._json("POST", path_of("jobs", job_id, "cancel"))

    def retry(self, job_id: str) -> Job:
        """Run again what failed of a job that is done."""
        return self._json("POST", path_of("jobs", job_id, "retry"))

    def delete(self, job_id: str) -> None:
        self._send("DELETE", path_of("jobs", job_id))

    # Webhooks

    def webhooks(self, job_id: str | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """What was told, of one job or of all, newest first, over all pages. Filters: state (of all), limit."""
        yield from self._pages(path_of("jobs", job_id, "webhooks") if job_id else "/v1/webhooks", "webhooks", filters)

    def webhook(self, webhook_id: str) -> dict[str, Any]:
        return self._json("GET", path_of("webhooks", webhook_id))

    def replay_webhooks(
        self,
        job_id: str | None = None,
        webhook_id: str | None = None,
        *,
        since: str | None = None,
        until: str | None = None,
    ) -> int:
        """Tell again what was not delivered, of one job or of all since then; or one event of a job. How many."""
        path = path_of("jobs", job_id, "webhooks", "replay") if job_id else "/v1/webhooks/replay"
        body = {"id": webhook_id} if job_id else {"since": since, "until": until}
        return int(self._json("POST", path, body={name: at for name, at in body.items() if at is not None})["replayed"])

    def test_webhook(self, url: str) -> dict[str, Any]:
        """Send a test; `webhook` of its id says what came of it."""
        return self._json("POST", "/v1/webhooks/test", body={"url": url})

    def enable_webhook(self, url: str) -> None:
        """Let a URL that answered 410 be told again."""
        self._json("POST", "/v1/webhooks/enable", body={"url": url})

    def webhook_secrets(self) -> list[dict[str, Any]]:
        """Those that sign now, the newest first."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/webhooks/secret")["secrets"]
        return found

    def rotate_webhook_secret(self, secret: str | None = None, overlap_s: float | None = None) -> list[dict[str, Any]]:
        """Put another secret in place, a random one unless given; the former one signs beside it for the overlap."""
        given = {"secret": secret, "overlap_s": overlap_s}
        body = {name: value for name, value in given.items() if value is not None}
        found: list[dict[str, Any]] = self._json("POST", "/v1/webhooks/secret/rotate", body=body)["secrets"]
        return found

    # Pictures, collections, models

    def upload(self, image: Path | bytes) -> dict[str, Any]:
        """Store a picture's bytes; the answer's ``sha256`` names it in a job."""
        data = image if isinstance(image, bytes) else image.read_bytes()
        guessed = None if isinstance(image, bytes) else mimetypes.guess_type(image.name)[0]
        headers = {"Content-Type": guessed or "application/octet-stream"}
        return self._json("POST", "/v1/images", content=data, headers=headers)

    def delete_upload(self, sha256: str, kind: str = "image") -> None:
        """Delete an uploaded picture, or a ``manifest``. Raises for one that a job or an item needs."""
        self._send("DELETE", path_of(f"{kind}s", sha256))

    def upload_manifest(self, lines: Iterable[bytes]) -> dict[str, Any]:
        """Store a JSON-lines file of items, streamed; the answer's ``sha256`` names it in a job's ``manifest``.

        What can be gone through only once is kept in a temporary file, to be sent again if the connection fails.
        """
        headers = {"Content-Type": "application/jsonl"}
        if iter(lines) is not lines:
            return self._json("POST", "/v1/manifests", stream=lambda: iter(lines), headers=headers)
        with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as kept:
            kept.writelines(lines)
            return self._json("POST", "/v1/manifests", stream=lambda: _blocks(kept), headers=headers)

    def thumbnail(self, sha256: str, width: int) -> bytes:
        return self._send("GET", path_of("images", sha256), params={"width": width}).content

    def create_collection(self, name: str, model: str | None = None, *, dim: int | None = None) -> dict[str, Any]:
        """Make a collection of a model's vectors, or of your own of ``dim`` numbers; or find the one that is there."""
        body = {name: value for name, value in (("model", model), ("dim", dim)) if value is not None}
        return self._json("PUT", path_of("collections", name), body=body)

    def collection(self, name: str) -> dict[str, Any]:
        return self._json("GET", path_of("collections", name))

    def item_pages(
        self, name: str, *, filter: Mapping[str, Any] | None = None, vectors: bool = False, page_items: int = 1000
    ) -> Iterator[list[dict[str, Any]]]:
        """A collection's items in the order of their ids, those that pass the filter; ``vector_b64`` with vectors."""
        params: dict[str, Any] = {"limit": page_items, "vectors": vectors}
        if filter is not None:
            params["filter"] = json.dumps(filter)
        while True:
            page = self._json("GET", path_of("collections", name, "items"), params=params)
            yield page["items"]
            if not page["next_cursor"]:
                return
            params["cursor"] = page["next_cursor"]

    def search(self, collection: str, *queries: Any, **options: Any) -> list[dict[str, Any]]:
        """Search and wait: for each query its hits or its error, in order. Options are the job's input: k, filter, …"""
        asked = {"collection": collection, "queries": list(queries), **options}
        job = self.wait(self.submit("search", asked, priority="interactive")["id"])
        found: list[dict[str, Any]] = self.result(job["id"])["results"]
        return found

    def collections(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/v1/collections")["collections"]
        return found

    def delete_collection(self, name: str) -> None:
        self._send("DELETE", path_of("collections", name))

    def generations(self, name: str) -> list[dict[str, Any]]:
        """The collection's vectors by each model that it has them of, the serving ones first."""
        found: list[dict[str, Any]] = self._json("GET", path_of("collections", name, "generations"))["generations"]
        return found

    def delete_generation(self, name: str, role: str) -> None:
        self._send("DELETE", path_of("collections", name, "generations", role))

    def snapshots(self, name: str) -> list[dict[str, Any]]:
        """The built indexes of a collection that are kept, newest first."""
        found: list[dict[str, Any]] = self._json("GET", path_of("collections", name, "snapshots"))["snapshots"]
        return found

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Delete one that is not searched."""
        self._send("DELETE", path_of("collections", name, "snapshots", snapshot))

    def rollback(self, name: str, snapshot: str | None = None) -> dict[str, Any]:
        """Search a given snapshot again, or the one before the current one."""
        body = {"snapshot": snapshot} if snapshot is not None else {}
        return self._json("POST", path_of("collections", name, "rollback"), body=body)

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        return self._json("GET", path_of("models", name))

    def order_model(self, name: str, wanted: Literal["load", "unload"]) -> dict[str, Any]:
        """Have every worker load a model or let go of it; the answer's ``order`` shows in `model` when it is done."""
        return self._json("POST", path_of("models", name, wanted))


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        yield block
