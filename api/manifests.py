"""Manifests: counted as they come in, cut into chunks when a job names them; items are checked when they are run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from api.problems import invalid
from api.state import ApiState
from revln.db.jobs.submit import NewChunk, Range
from revln.errors import ItemNotFound

__all__ = ["ManifestLines", "cut_manifest"]

_LINE_MAX_BYTES = 2**20  # the longest item, fully escaped, takes a fifth of it
_RANGE_MAX_BYTES = 64 * 2**20  # what a worker reads of a manifest at once, blank lines included


class ManifestLines:
    """Counts a manifest's lines as they come in, and refuses what is none; for one thread at a time.

    A line that is no item becomes that item's error. But where no line at all is JSON, the bytes are something else.
    """

    def __init__(self) -> None:
        self.count = 0  # those that are not blank
        self._number = 0
        self._rest = b""
        self._any_json = False

    def feed(self, piece: bytes) -> None:
        """Raises ValidationFailed: a line is too long."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._look(line)
        if len(self._rest) > _LINE_MAX_BYTES:
            self._look(self._rest)

    def end(self) -> int:
        """Return how many lines are not blank. Raises ValidationFailed if there are none, or none is JSON."""
        self._look(self._rest)
        if not self.count:
            sent = "blank lines alone" if self._number > 1 or self._rest else "no bytes"
            raise invalid("", f"{sent} were sent; a manifest has one item a line")
        if not self._any_json:
            raise invalid("", f"none of its {self.count:,} lines is JSON; a manifest has one item a line, as JSON")
        return self.count

    def _look(self, line: bytes) -> None:
        self._number += 1
        if len(line) > _LINE_MAX_BYTES:
            raise invalid("", f"line {self._number} is longer than {_LINE_MAX_BYTES:,} bytes; shorten it")
        if line.strip():
            self.count += 1
            self._any_json = self._any_json or _is_json(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def cut_manifest(state: ApiState, tenant: str, sha256: str, chunk_items: int) -> list[NewChunk]:
    """Cut a manifest into byte ranges of ``chunk_items`` lines each, without ever holding it in memory.

    Raises:
        ValidationFailed: the tenant does not have it, or its lines are too many or too long, or none.
    """
    pointer = "/input/manifest/sha256"
    chunks: list[NewChunk] = []
    total = in_chunk = start = end = 0
    try:
        if not state.uploads.of(tenant, "manifest", [sha256]):
            raise ItemNotFound
        with state.blobs.open(sha256, "manifests") as file:
            for begin, stop in _lines(file, pointer, state.settings.max_job_items):
                if in_chunk == chunk_items or (in_chunk and stop - start > _RANGE_MAX_BYTES):
                    chunks.append(NewChunk(total - in_chunk, in_chunk, Range(start, end - start)))
                    in_chunk = 0
                if not in_chunk:
                    start = begin
                total, in_chunk, end = total + 1, in_chunk + 1, stop
    except ItemNotFound as err:
        raise invalid(pointer, f"there is no manifest {sha256}; POST /v1/manifests uploads one") from err
    if not total:
        raise invalid(pointer, "the manifest has no items; it needs at least one line that is not blank")
    return [*chunks, NewChunk(total - in_chunk, in_chunk, Range(start, end - start))]


def _lines(file: IO[bytes], pointer: str, most: int) -> Iterator[tuple[int, int]]:
    """Where each line that is not blank begins and ends."""
    number = offset = 0
    while line := file.readline(_LINE_MAX_BYTES + 1):
        number += 1
        if number > most:
            raise invalid(pointer, f"more than {most} lines (REVLN_MAX_JOB_ITEMS); submit it as several jobs")
        if len(line) > _LINE_MAX_BYTES:
            raise invalid(pointer, f"line {number} is longer than {_LINE_MAX_BYTES:,} bytes; shorten it")
        if line.strip():
            yield offset, offset + len(line)
        offset += len(line)
