"""The HTTP API: validate, insert, publish, read. It never imports torch, faiss or worker (a test holds that)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api import docs, problems
from api.answers import Problem
from api.auth import OPEN_PATHS, RequireKey
from api.headers import CORS_EXPOSED, CORS_HEADERS, CORS_METHODS, AnswerHead, SecureHeaders
from api.limits import LimitBody
from api.outgoing import LimitAnswers
from api.rates import LimitRate
from api.routes import (
    audit,
    chunks,
    collections,
    generations,
    health,
    images,
    jobs,
    keys,
    manifests,
    models,
    snapshots,
    webhooks,
)
from api.state import ApiState
from revln import __version__
from revln.exposure import require_api_key
from revln.settings import Settings
from revln.telemetry import configure_logging

__all__ = ["create_app"]

_DESCRIPTION = """
Submit long jobs on pictures and texts, poll them, read their results.

A job that was accepted (202) is committed: it ends once, whatever dies meanwhile. Every item of it ends with a result
or with an error of its own.
"""


class _App(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        # Around Starlette's own outermost middleware, which answers what nobody expected.
        return SecureHeaders(AnswerHead(super().build_middleware_stack()))

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            for path, verbs in schema["paths"].items():
                for verb, operation in verbs.items():
                    if path in OPEN_PATHS:
                        operation["security"] = []
                    _describe_problems(operation["responses"])
                    if verb == "post":
                        full = {
                            "description": "No room to store this",
                            "content": operation["responses"]["4XX"]["content"],
                        }
                        operation["responses"]["507"] = full
        return super().openapi()


def _describe_problems(responses: dict[str, Any]) -> None:
    """Every route may answer 503; and FastAPI gives a problem the media type of the route's good answer."""
    problem = {problems.PROBLEM_TYPE: next(iter(responses["4XX"]["content"].values()))}
    responses["4XX"]["content"] = problem
    away = responses.setdefault("503", {"description": "A part of the service is away, or has too much at hand"})
    away["content"] = away.get("content", {}) | problem
    away["headers"] = {
        "Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}
    }


def create_app(settings: Settings | None = None, make_state: Callable[[Settings], ApiState] = ApiState) -> FastAPI:
    """Build the application; without settings, from the environment (uvicorn's ``--factory``).

    Raises:
        SettingsError: it would listen beyond this machine without a key.
    """
    settings = settings or Settings.from_env()
    require_api_key(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings)
        # Routes run in this pool. Waiting clients are coroutines and take none of it.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        state = make_state(settings)
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
    app.add_middleware(LimitAnswers, settings=settings)
    app.add_middleware(LimitRate)
    app.add_middleware(RequireKey, settings=settings)
    if settings.cors_origin_list:  # outside the key: a browser asks first, and without one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin_list,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_HEADERS,
            expose_headers=CORS_EXPOSED,
        )
    yours = (jobs, chunks, images, manifests, collections, generations, snapshots, webhooks, keys, audit)
    for module in (*yours, models, health, docs):
        app.include_router(module.router, responses={"4XX": {"description": "A problem", "model": Problem}})
    return app
