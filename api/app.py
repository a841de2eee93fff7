"""The HTTP API: validate, insert, publish, read. It never imports torch, faiss or worker (a test holds that)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import anyio.to_thread
from fastapi import FastAPI

from api import docs, problems
from api.answers import Problem
from api.auth import RequireKey
from api.limits import LimitBody
from api.routes import collections, generations, health, images, jobs, manifests, models, snapshots, webhooks
from api.state import ApiState
from revln import __version__
from revln.errors import SettingsError
from revln.settings import Settings
from revln.telemetry import configure_logging

__all__ = ["create_app"]

_DESCRIPTION = """
Submit long jobs on pictures and texts, poll them, read their results.

A job that was accepted (202) is committed: it ends once, whatever dies meanwhile. Every item of it ends with a result
or with an error of its own.
"""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            for verbs in super().openapi()["paths"].values():
                for operation in verbs.values():
                    # FastAPI gives a problem the media type of the route's good answer.
                    problem = operation["responses"]["4XX"]
                    problem["content"] = {"application/problem+json": next(iter(problem["content"].values()))}
        return super().openapi()


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; without settings, from the environment (uvicorn's ``--factory``).

    Raises:
        SettingsError: it would listen beyond this machine without a key.
    """
    settings = settings or Settings.from_env()
    if not settings.api_key.get_secret_value() and not _is_loopback(settings.api_host):
        raise SettingsError(
            f"REVLN_API_HOST={settings.api_host} is reachable from other machines: set REVLN_API_KEY, or listen on "
            "127.0.0.1."
        )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings)
        # Routes run in this pool. Waiting clients are coroutines and take none of it.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        state = ApiState(settings)
        app.state.revln = state
        await state.start()
        try:
            yield
        finally:
            await state.stop()

    app = _App(
        title="revln", version=__version__, description=_DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    problems.install(app)
    # The last added runs first: no byte of a body is read for a stranger.
    app.add_middleware(LimitBody, settings=settings)
    app.add_middleware(RequireKey, key=settings.api_key.get_secret_value())
    for module in (jobs, images, manifests, collections, generations, snapshots, models, webhooks, health, docs):
        app.include_router(module.router, responses={"4XX": {"description": "A problem", "model": Problem}})
    return app


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
