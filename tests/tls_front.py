"""A TLS listener on loopback in front of a unix socket, with whatever certificate a test gives it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import trustme

__all__ = ["TlsFront", "tls_front"]


@dataclass
class TlsFront:
    port: int
    # What came through: nothing, if whoever connected did not trust the certificate.
    received: list[bytes] = field(default_factory=list)
    handshakes_failed: int = 0


@contextmanager
def tls_front(certificate: trustme.LeafCert, behind: Path | None = None) -> Iterator[TlsFront]:
    """Relay to the socket ``behind``, if there is one; else only read."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server:
        front = TlsFront(server.getsockname()[1])
        Thread(target=_accept, args=(server, context, front, behind), daemon=True).start()
        yield front
        server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, context: ssl.SSLContext, front: TlsFront, behind: Path | None) -> None:
    with suppress(OSError):
        while True:
            plain, _ = server.accept()
            Thread(target=_serve, args=(plain, context, front, behind), daemon=True).start()


def _serve(plain: socket.socket, context: ssl.SSLContext, front: TlsFront, behind: Path | None) -> None:
    try:
        client = context.wrap_socket(plain, server_side=True)
    except OSError:
        front.handshakes_failed += 1
        plain.close()
        return
    with closing(client):
        if behind is None:
            _copy(client, None, front.received)
            return
        with socket.socket(socket.AF_UNIX) as target:
            target.connect(str(behind))
            back = Thread(target=_copy, args=(target, client, []), daemon=True)
            back.start()
            _copy(client, target, front.received)
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            back.join()


def _copy(source: socket.socket, target: socket.socket | None, seen: list[bytes]) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            seen.append(data)
            if target is not None:
                target.sendall(data)
