"""Large answers go out in pieces, and what is under way has a limit for each tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from api.outgoing import LimitAnswers
from revln.access import Caller
from revln.settings import Settings

LARGE, MEMORY = 300_000, 2**20


class Client:
    """Takes pieces of an answer once it is told to."""

    def __init__(self) -> None:
        self.may_take = asyncio.Event()
        self.messages: list[Any] = []

    async def take(self, message: Any) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body":
            await self.may_take.wait()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])


def answering(body: bytes, *, declared: bool = True) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % len(body))] if declared else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def running(test: Callable[[LimitAnswers, Callable[..., tuple[Client, asyncio.Task[None]]]], Any], body: bytes) -> None:
    async def main() -> None:
        guard = LimitAnswers(answering(body), Settings(body_memory_bytes=MEMORY))

        def ask(tenant: str = "a") -> tuple[Client, asyncio.Task[None]]:
            client, caller = Client(), Caller(tenant, "k", frozenset())
            scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "state": {"caller": caller}}
            return client, asyncio.ensure_future(guard(scope, None, client.take))  # type: ignore[arg-type]

        await test(guard, ask)

    asyncio.run(main())


def test_a_large_answer_is_handed_on_as_it_is_taken_and_counted_until_then() -> None:
    body = bytes(range(256)) * (LARGE // 256)

    async def test(guard: LimitAnswers, ask: Any) -> None:
        client, task = ask()
        await asyncio.sleep(0)
        assert (len(client.messages), guard.held_bytes["a"]) == (2, len(body)), "the head and a piece"
        client.may_take.set()
        await task
        assert (client.body, guard.held_bytes) == (body, {})
        assert client.messages[-1]["more_body"] is False

    running(test, body)


def test_a_tenant_that_does_not_read_is_refused_and_others_are_not() -> None:
    async def test(guard: LimitAnswers, ask: Any) -> None:
        waiting = [ask() for _ in range(3)]
        await asyncio.sleep(0)
        assert waiting[0][0].status == 200
        for client, task in waiting[1:]:
            client.may_take.set()
            await task
            assert client.status == 503
            assert b"REVLN_BODY_MEMORY_BYTES" in client.body
        other, task = ask("b")
        await asyncio.sleep(0)
        assert other.status == 200
        task.cancel()
        await asyncio.wait([task])
        assert guard.held_bytes == {"a": LARGE}
        waiting[0][0].may_take.set()
        await waiting[0][1]
        client, task = ask()
        client.may_take.set()
        await task
        assert (client.status, len(client.body)) == (200, LARGE)

    running(test, bytes(LARGE))


def test_small_answers_are_not_counted() -> None:
    async def test(guard: LimitAnswers, ask: Any) -> None:
        many = [ask() for _ in range(100)]
        await asyncio.sleep(0)
        assert {client.status for client, _ in many} == {200}
        assert guard.held_bytes == {}
        for client, _ in many:
            client.may_take.set()
        await asyncio.gather(*(task for _, task in many))

    running(test, bytes(60_000))
