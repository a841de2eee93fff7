"""The socket's side: httpcore dials what was judged, within the deadline, and every byte is counted."""

# ruff: noqa: ARG002 (the network backend's signatures are httpcore's; its timeouts give way to our one deadline)
from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

from revln.fetch.deadline import Deadline

__all__ = ["PinnedBackend"]


class PinnedBackend(httpcore.SyncBackend):
    """Dials only the addresses that were judged, whatever name it is given."""

    def __init__(self, addresses: Sequence[str], deadline: Deadline, max_bytes: int) -> None:
        self._addresses, self._deadline, self._max_bytes = addresses, deadline, max_bytes

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        for position, address in enumerate(self._addresses, start=1):
            # Each address may take its share of what is left, so that a dead IPv6 route leaves time for IPv4.
            share = self._deadline.left() / (len(self._addresses) - position + 1)
            try:
                stream = super().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(self._addresses):
                    raise
            else:
                return _BoundedStream(stream, self._deadline, self._max_bytes)
        raise httpcore.ConnectError("the name has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("sockets in the file system are never dialled")


class _BoundedStream(httpcore.NetworkStream):
    """Every operation gets what is left of the deadline, and all bytes are counted: headers and interim answers too."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline, max_bytes: int) -> None:
        self._inner, self._deadline, self._bytes_left = inner, deadline, max_bytes

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, self._deadline.left())
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise httpcore.ReadError("more bytes than any answer needs")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _BoundedStream(inner, self._deadline, self._bytes_left)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
