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
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import httpx

from revln import errors
from revln.client_wire import Event, error_of, list_of, retry_after_s, sse_events

__all__ = ["Event", "Job", "RevlnClient"]

Job = dict[str, Any]

BUSY = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
LONG_POLL_S = 20.0  # under the idle timeouts of common proxies
ANSWER_MARGIN_S = 30.0  # a server that holds a call for N seconds is given N and this


class RevlnClient:
    """Synchronous; may be shared by threads.

    Args:
        url: where the API listens.
        api_key: sent as a bearer token.
        retry_for_s: how long a failing connection or a busy server is tried again, for one call.
    """

    def __init__(self, url: str, api_key: str | None = None, *, retry_for_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._retry_for_s = retry_for_s
        # A proxy named in the environment cannot reach our own machine.
        try:
            local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(ANSWER_MARGIN_S, connect=5.0),
                trust_env=not local,
            )
        except (ValueError, httpx.InvalidURL) as error:  # the URL, the key, or a proxy that the environment names
            raise errors.SettingsError(
                f"{self.url!r}, or a proxy of the environment, cannot be used: {error}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

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
        return self._json("POST", "/v1/jobs", json=body, headers=headers, held_s=wait_s)

    def job(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        """The job as it is now, or as it is after ``wait_s`` seconds or a change, whichever comes first."""
        params = {"wait": f"{wait_s:g}"} if wait_s else None
        return self._json("GET", f"/v1/jobs/{quote(job_id)}", params=params, held_s=wait_s)

    def wait(self, job_id: str, timeout_s: float | None = None, on_update: Callable[[Job], None] | None = None) -> Job:
        """Long-poll until the job is done, whichever way it ended.

        Raises:
            TimeoutError: it was not done within ``timeout_s``.
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
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout_s:g} s")

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Newest first, over all pages. Filters: status, kind, collection, tag, dead, created_after, limit."""
        yield from self._pages("/v1/jobs", "jobs", filters)

    def chunks(self, job_id: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """A job's chunks, over all pages: tries, crashes, errors. Filters: state, limit (of a page)."""
        yield from self._pages(f"/v1/jobs/{quote(job_id)}/chunks", "chunks", filters)

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
        return whole

    def result_pages(self, job_id: str, *, page_items: int = 1000) -> Iterator[dict[str, Any]]:
        """The result's pages, in order: for results that do not fit in memory."""
        offset = 0
        while True:
            params = {"offset": offset, "limit": page_items}
            page = self._json("GET", f"/v1/jobs/{quote(job_id)}/result", params=params)
            count = len(page[list_of(page)])
            if count or not offset:
                yield page
            offset += count
            if not count or offset >= page["total"]:
                return

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
        """What happens to the job, from the beginning (or after ``last_event_id``) until its end."""
        started = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
            path = f"/v1/jobs/{quote(job_id)}/events"
            try:
                with self._http.stream("GET", path, headers=headers) as answer:
                    if answer.is_error:
                        answer.read()
                        raise error_of(answer)
                    for event in sse_events(answer.iter_lines()):
                        last_event_id, started = event.id or last_event_id, time.monotonic()
                        yield event
                return  # the server closes the stream after the last event of a job that is done
            except httpx.TransportError as error:
                if time.monotonic() - started > self._retry_for_s:
                    raise errors.Unavailable(f"{self.url} does not answer: {error}") from error
                time.sleep(FIRST_PAUSE_S)

    def cancel(self, job_id: str) -> Job:
        return self._json("POST", f"/v1/jobs/{quote(job_id)}/cancel")

    def retry(self, job_id: str) -> Job:
        """Run again what failed of a job that is done."""
        return self._json("POST", f"/v1/jobs/{quote(job_id)}/retry")

    def delete(self, job_id: str) -> None:
        self._send("DELETE", f"/v1/jobs/{quote(job_id)}")

    # Webhooks

    def webhooks(self, job_id: str | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """What was told, of one job or of all, newest first, over all pages. Filters: state (of all), limit."""
        yield from self._pages(f"/v1/jobs/{quote(job_id)}/webhooks" if job_id else "/v1/webhooks", "webhooks", filters)

    def webhook(self, webhook_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/webhooks/{quote(webhook_id)}")

    def replay_webhooks(
        self,
        job_id: str | None = None,
        webhook_id: str | None = None,
        *,
        since: str | None = None,
        until: str | None = None,
    ) -> int:
        """Tell again what was not delivered, of one job or of all since then; or one event of a job. How many."""
        path = f"/v1/jobs/{quote(job_id)}/webhooks/replay" if job_id else "/v1/webhooks/replay"
        body = {"id": webhook_id} if job_id else {"since": since, "until": until}
        return int(self._json("POST", path, json={name: at for name, at in body.items() if at is not None})["replayed"])

    def test_webhook(self, url: str) -> dict[str, Any]:
        """Send a test; `webhook` of its id says what came of it."""
        return self._json("POST", "/v1/webhooks/test", json={"url": url})

    def enable_webhook(self, url: str) -> None:
        """Let a URL that answered 410 be told again."""
        self._send("POST", "/v1/webhooks/enable", json={"url": url})

    def webhook_secrets(self) -> list[dict[str, Any]]:
        """Those that sign now, the newest first."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/webhooks/secret")["secrets"]
        return found

    def rotate_webhook_secret(self, secret: str | None = None, overlap_s: float | None = None) -> list[dict[str, Any]]:
        """Put another secret in place, a random one unless given; the former one signs beside it for the overlap."""
        given = {"secret": secret, "overlap_s": overlap_s}
        body = {name: value for name, value in given.items() if value is not None}
        found: list[dict[str, Any]] = self._json("POST", "/v1/webhooks/secret/rotate", json=body)["secrets"]
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
        self._send("DELETE", f"/v1/{kind}s/{quote(sha256)}")

    def upload_manifest(self, lines: Iterable[bytes]) -> dict[str, Any]:
        """Store a JSON-lines file of items, streamed; the answer's ``sha256`` names it in a job's ``manifest``.

        A stream cannot be sent a second time, so this is not repeated when the connection fails.
        """
        answer = self._http.post("/v1/manifests", content=iter(lines), headers={"Content-Type": "application/jsonl"})
        if answer.is_error:
            raise error_of(answer)
        found: dict[str, Any] = answer.json()
        return found

    def thumbnail(self, sha256: str, width: int) -> bytes:
        return self._send("GET", f"/v1/images/{quote(sha256)}", params={"width": width}).content

    def create_collection(self, name: str, model: str | None = None, *, dim: int | None = None) -> dict[str, Any]:
        """Make a collection of a model's vectors, or of your own of ``dim`` numbers; or find the one that is there."""
        body = {name: value for name, value in (("model", model), ("dim", dim)) if value is not None}
        return self._json("PUT", f"/v1/collections/{quote(name)}", json=body)

    def collection(self, name: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/collections/{quote(name)}")

    def item_pages(
        self, name: str, *, filter: Mapping[str, Any] | None = None, vectors: bool = False, page_items: int = 1000
    ) -> Iterator[list[dict[str, Any]]]:
        """A collection's items in the order of their ids, those that pass the filter; ``vector_b64`` with vectors."""
        params: dict[str, Any] = {"limit": page_items, "vectors": vectors}
        if filter is not None:
            params["filter"] = json.dumps(filter)
        while True:
            page = self._json("GET", f"/v1/collections/{quote(name)}/items", params=params)
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
        self._send("DELETE", f"/v1/collections/{quote(name)}")

    def generations(self, name: str) -> list[dict[str, Any]]:
        """The collection's vectors by each model that it has them of, the serving ones first."""
        found: list[dict[str, Any]] = self._json("GET", f"/v1/collections/{quote(name)}/generations")["generations"]
        return found

    def delete_generation(self, name: str, role: str) -> None:
        self._send("DELETE", f"/v1/collections/{quote(name)}/generations/{quote(role)}")

    def snapshots(self, name: str) -> list[dict[str, Any]]:
        """The built indexes of a collection that are kept, newest first."""
        found: list[dict[str, Any]] = self._json("GET", f"/v1/collections/{quote(name)}/snapshots")["snapshots"]
        return found

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Delete one that is not searched."""
        self._send("DELETE", f"/v1/collections/{quote(name)}/snapshots/{quote(snapshot)}")

    def rollback(self, name: str, snapshot: str | None = None) -> dict[str, Any]:
        """Search a given snapshot again, or the one before the current one."""
        body = {"snapshot": snapshot} if snapshot is not None else {}
        return self._json("POST", f"/v1/collections/{quote(name)}/rollback", json=body)

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/models/{quote(name, safe='')}")

    def order_model(self, name: str, wanted: Literal["load", "unload"]) -> dict[str, Any]:
        """Have every worker load a model or let go of it; the answer's ``order`` shows in `model` when it is done."""
        return self._json("POST", f"/v1/models/{quote(name, safe='')}/{wanted}")

    # Underneath

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._send(method, path, **request).json()
        return found

    def _send(self, method: str, path: str, *, held_s: float = 0.0, **request: Any) -> httpx.Response:
        timeout = httpx.Timeout(held_s + ANSWER_MARGIN_S, connect=5.0)
        give_up_at = time.monotonic() + self._retry_for_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                answer = self._http.request(method, path, timeout=timeout, **request)
            except httpx.TransportError as error:
                failure: errors.RevlnError = errors.Unavailable(f"{self.url} does not answer: {error}")
                asked_s = 0.0
            else:
                if not answer.is_error:
                    return answer
                failure = error_of(answer)
                if answer.status_code not in BUSY:
                    raise failure
                asked_s = retry_after_s(answer)
            # Full jitter, so that clients that were refused together do not come back together.
            wait_s = asked_s or random.uniform(pause_s / 2, pause_s)  # noqa: S311 - no secret
            if time.monotonic() + wait_s > give_up_at:
                raise failure
            time.sleep(wait_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
