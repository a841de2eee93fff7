"""Describe models whose files are on a hub, each in a thread of its own: one that does not answer holds up nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread

from revln.errors import ModelUnavailable, RevlnError, Unavailable
from revln.models.base import ModelInfo

__all__ = ["Looks"]

log = logging.getLogger(__name__)

_PATIENCE_S = 3.0  # from the begin of a look: a few kilobytes come sooner
_RETRY_S = 30.0  # a hub that was away is not asked again for each request


@dataclass(slots=True)
class _Look:
    began: float
    future: Future[ModelInfo] = field(default_factory=Future)
    failed_at: float | None = None


class Looks:
    """Thread-safe."""

    def __init__(
        self, read: Callable[[str], ModelInfo], *, patience_s: float = _PATIENCE_S, retry_s: float = _RETRY_S
    ) -> None:
        self._read = read
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._looks: dict[str, _Look] = {}
        self._lock = Lock()

    def begin(self, name: str) -> _Look:
        """Look, unless somebody does already, or did and failed a moment ago."""
        now = time.monotonic()
        with self._lock:
            look = self._looks.get(name)
            if look is None or (look.failed_at is not None and now > look.failed_at + self._retry_s):
                look = self._looks[name] = _Look(now)
                # As a daemon: a hub that never answers may not keep a process from ending.
                Thread(target=self._look, args=(name, look), name=f"describe-{name}", daemon=True).start()
            return look

    def describe(self, name: str) -> ModelInfo:
        """Wait for the look, for as long as is left of its time.

        Raises:
            ModelUnavailable: what the look found.
            Unavailable: it still goes on.
        """
        look = self.begin(name)
        try:
            return look.future.result(timeout=max(0.0, look.began + self._patience_s - time.monotonic()))
        except TimeoutError:
            if look.future.done():
                return look.future.result()
            waited = time.monotonic() - look.began
            raise Unavailable(
                f"Model {name} is being fetched from its hub, which has not given all of it in {waited:.0f} s. "
                "It goes on; ask again, or give a folder as its source."
            ) from None

    def _look(self, name: str, look: _Look) -> None:
        try:
            look.future.set_result(self._read(name))
        except Exception as err:
            known = isinstance(err, RevlnError)
            if not known:
                log.exception("model %s could not be described", name)
            look.failed_at = time.monotonic()
            look.future.set_exception(
                err if known else ModelUnavailable(f"Model {name} could not be described: {type(err).__name__}.")
            )
