"""How the client's requests travel: repeated while that may help, and every failure one error of the house."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import httpx

from revln import errors
from revln.client_wire import ApiError, error_of, retry_after_s

__all__ = ["ANSWER_MARGIN_S", "Answer", "Transport", "path_of"]

BUSY = frozenset({429, 502, 503, 504})
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
ANSWER_MARGIN_S = 30.0  # a server that holds a call for N seconds is given N and this
_CONNECT_S = 5.0

OnWait = Callable[[float, errors.RevlnError], object]


class Answer(dict[str, Any]):
    """A JSON object from the server. Raises ApiError for a field that every answer of revln's has."""

    def __init__(self, found: dict[str, Any], url: str) -> None:
        super().__init__(found)
        self._url = url

    def __missing__(self, name: str) -> NoReturn:
        raise ApiError(f"{self._url} answered without {name!r}: that is no revln, or another version of it", 200, "")


class Transport:
    """Shared by threads.

    Args:
        retry_for_s: how long a failing connection or a busy server is tried again, for one call.
        as_asked: what a server asks to wait with Retry-After is waited, and does not count towards ``retry_for_s``.
        on_wait: told of each such wait, and why.
    """

    def __init__(
        self, url: str, api_key: str | None, *, retry_for_s: float, as_asked: bool, on_wait: OnWait | None
    ) -> None:
        self.url = url
        self.retry_for_s = retry_for_s
        self._as_asked, self._on_wait = as_asked, on_wait
        self._answered = False  # whether anybody has answered here so far
        self._closed = threading.Event()
        try:
            # A proxy named in the environment cannot reach our own machine.
            local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
            self.http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(ANSWER_MARGIN_S, connect=_CONNECT_S),
                trust_env=not local,
            )
        except (ValueError, httpx.InvalidURL) as error:  # the URL, the key, or a proxy that the environment names
            raise errors.SettingsError(f"{url!r}, or a proxy of the environment, cannot be used: {error}") from None

    def close(self) -> None:
        """End what other threads are waiting for too."""
        self._closed.set()
        self.http.close()

    def json(self, method: str, path: str, *, body: Any = None, **request: Any) -> Answer:
        """Send a request, with ``body`` as JSON; the object that comes back. Raises RevlnError."""
        if body is not None:
            request["content"] = _encoded(body)
            request["headers"] = {"Content-Type": "application/json", **request.get("headers", {})}
        answer = self.send(method, path, **request)
        try:
            found = answer.json()
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise _not_ours(answer)
        return Answer(found, str(answer.url))

    def send(
        self,
        method: str,
        path: str,
        *,
        held_s: float = 0.0,
        stream: Callable[[], Iterator[bytes]] | None = None,
        **request: Any,
    ) -> httpx.Response:
        """Send until there is an answer, or for as long as we may; ``stream`` makes the body anew each time."""
        timeout = httpx.Timeout(held_s + ANSWER_MARGIN_S, connect=_CONNECT_S)
        give_up_at = time.monotonic() + self.retry_for_s
        pause_s = FIRST_PAUSE_S
        while True:
            if stream is not None:
                request["content"] = stream()
            answer, failure = self._once(method, path, timeout, request)
            if answer is not None and failure is None:
                return answer
            assert failure is not None
            asked_s = retry_after_s(answer) if answer is not None else 0.0
            # Full jitter, so that clients that were refused together do not come back together.
            wait_s = asked_s or random.uniform(pause_s / 2, pause_s)  # noqa: S311 - no secret
            if asked_s and self._as_asked:
                give_up_at = time.monotonic() + wait_s + self.retry_for_s
            if time.monotonic() + wait_s > give_up_at:
                raise failure
            if asked_s and self._on_wait:
                self._on_wait(wait_s, failure)
            self.pause(wait_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def pause(self, seconds: float) -> None:
        """Wait. Raises Unavailable: the client was closed meanwhile."""
        if self._closed.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise errors.Unavailable("The client was closed while it waited.")

    def _once(
        self, method: str, path: str, timeout: httpx.Timeout, request: dict[str, Any]
    ) -> tuple[httpx.Response | None, errors.RevlnError | None]:
        """One try: the answer if there was one, and what was wrong if that may pass. Raises what will not."""
        try:
            with self.translated():
                answer = self.http.request(method, path, timeout=timeout, **request)
        except errors.Unavailable as failure:
            if not self._answered and isinstance(failure.__cause__, httpx.ConnectError):
                raise  # nothing listens there: more likely a wrong address than a restart
            return None, failure
        self._answered = True
        if answer.is_success:
            return answer, None
        failure_there = error_of(answer)
        if answer.status_code not in BUSY:
            raise failure_there
        return answer, failure_there

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what httpx raises into an error of the house: Unavailable for what may pass."""
        try:
            yield
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise errors.Unavailable(f"{self.url} does not answer: {why}") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ApiError(f"{self.url} cannot be asked, or gave no answer that can be read: {error}", 0, "") from error


def path_of(*parts: str) -> str:
    """A path of the API, each part escaped. Raises ValidationFailed."""
    try:
        return "/v1/" + "/".join(quote(part, safe="") for part in parts)
    except UnicodeEncodeError as error:
        raise errors.ValidationFailed(f"{error.object!r} is not UTF-8, so nothing is called that") from None


def _encoded(body: Any) -> bytes:
    """Raises ValidationFailed."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise errors.ValidationFailed(
            f"The text {error.object[max(0, error.start - 20) : error.end]!r} ends in U+{ord(found):04X}, half of a "
            "surrogate pair, which is no character. Remove it."
        ) from None
    except (ValueError, RecursionError) as error:
        raise errors.ValidationFailed(f"This cannot be sent as JSON, which has no NaN or infinity: {error}") from None


def _not_ours(answer: httpx.Response) -> ApiError:
    media_type = answer.headers.get("Content-Type", "no type")
    return ApiError(
        f"{answer.url} answered HTTP {answer.status_code} with {media_type}, not with the JSON of revln's API. Is it "
        "revln, or a proxy before it?",
        answer.status_code,
        "",
    )
