"""Nothing without a key but /healthz; and what a key may do, by the method, before a byte of the body is read."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem_response
from revln.access import OWNER, is_loopback
from revln.access import Scope as KeyScope
from revln.errors import Forbidden, RevlnError
from revln.settings import Settings

__all__ = ["OPEN_PATHS", "RequireKey"]

OPEN_PATHS = frozenset({"/healthz"})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequireKey:
    """ASGI middleware that puts the caller into the request's state, for `api.access`.

    By the method and not route by route: a new route cannot be forgotten. What needs more says so itself (`Admin`).
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._origins = settings.cors_origin_list

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            caller = await scope["app"].state.revln.keys.caller(headers.get("authorization"))
            if caller is OWNER:
                self._refuse_strange_pages(headers)
            caller.demand(KeyScope.READ if scope["method"] in _READS else KeyScope.SUBMIT)
        except RevlnError as err:
            await problem_response(err, scope["path"])(scope, receive, send)
            return
        address = _address_of(scope)
        scope.setdefault("state", {})["caller"] = caller.at(address)
        await self._app(scope, receive, send)

    def _refuse_strange_pages(self, headers: Headers) -> None:
        """An open API is this machine's, not that of every web page which a browser on it happens to show.

        A page can send a POST to any address, and can have its own name resolve to 127.0.0.1. Raises Forbidden.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and not is_loopback(_name_of(f"//{host}")):
            raise Forbidden(
                f"Without a key this API is for this machine alone, and {host[:80]!r} is not a name of it. To serve "
                "others, set REVLN_API_KEY."
            )
        if origin is not None and origin not in self._origins and origin.partition("//")[2] != host:
            raise Forbidden(
                f"Pages of {origin[:80]!r} may not use this API. Name the origin in REVLN_CORS_ORIGINS, or set "
                "REVLN_API_KEY."
            )


def _address_of(scope: Scope) -> str | None:
    """Who asks, as a proxy says or as the socket does. Text that is no address does not come into the audit log."""
    try:
        return str(ip_address(scope["client"][0])) if scope.get("client") else None
    except ValueError:
        return None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
