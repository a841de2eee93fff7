"""The API's words on a terminal."""

from __future__ import annotations

import re

__all__ = ["in_commands"]

# What an error of the API tells to do, and the command that does it.
_REQUESTS = {
    r"GET /v1/models": "`revln models`",
    r"PUT /v1/collections/(\S+)": r"`revln collection \1`",
    r"POST /v1/(?:images|manifests)": "`revln upload`",
    r"POST /v1/webhooks/enable": "`revln webhooks enable`",
    r"DELETE /v1/collections/([^/\s]+)/generations/(\w+)": r"`revln index generations \1 --delete \2`",
    r"GET /docs": "docs/http-api.md",
}


def in_commands(message: str) -> str:
    """An error of the API in the words of the command line."""
    for request, command in _REQUESTS.items():
        message = re.sub(request, command, message)
    return message
