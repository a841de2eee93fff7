"""Nothing that users send comes into the log, whatever goes wrong with it; and what they sent is answered."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from api.app import create_app
from revln.db.migrate import upgrade
from revln.errors import Unavailable
from revln.settings import Settings
from revln.telemetry import Formatter

MARK = "zebra-crossing"
HALF = "\ud800"


class _Number(BaseModel):
    number: int


def logged(err: Exception) -> str:
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "it failed", (), (type(err), err, err.__traceback__))
    return Formatter("%(message)s").format(record)


def test_a_traceback_has_places_and_types_and_not_what_was_sent() -> None:
    try:
        try:
            _Number(number=MARK)  # type: ignore[arg-type]
        except ValidationError as err:
            raise KeyError(MARK) from err
    except KeyError as err:
        told = logged(err)
    assert MARK not in told
    assert told.startswith("it failed\n")
    assert "KeyError\nwhich comes from\n" in told
    assert "ValidationError" in told
    assert "test_logs.py" in told


def test_what_the_service_lacks_is_said() -> None:
    assert logged(Unavailable("The database does not answer.")).endswith("Unavailable: The database does not answer.")


def _search(filter_: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "search", "input": {"collection": "c", "queries": [{"text": "x"}], "filter": filter_, **more}}


_BODIES: list[Any] = [
    _search({MARK + HALF: 1}),
    _search({f"a.{HALF}{MARK}": {"gt": 1}}),
    _search({"a": MARK + HALF}),
    _search({"a": {MARK + HALF: 1}}),
    _search({"not": {MARK + HALF: {}}}),
    _search({"a": 1}, **{MARK + HALF: 1}),
    {MARK + HALF: 1},
    {"kind": MARK + HALF},
    {"kind": "embed", "input": {"items": [{"text": MARK + HALF}]}},
    {"kind": "embed", "input": {"items": [{"text": MARK, HALF: MARK}]}},
    {"kind": "embed", "input": {"items": [{"text": MARK, "metadata": {MARK: HALF}}]}},
    {"kind": "embed", "input": {"items": [{"id": HALF + MARK, "text": "x"}]}, "metadata": {HALF: MARK}},
    {"kind": "embed", "input": {"items": [{"image": {"base64": MARK + "!"}}]}},
    {"kind": "embed", "input": {"items": [{"image": {"url": f"http://{MARK}{HALF}/"}}]}},
    {"kind": "embed", "input": {"items": [{"text": "x"}]}, "webhook": {"url": f"http://{MARK}{HALF}/"}},
    {"kind": "embed", "input": {"items": [{"text": "x"}]}, "model": MARK + HALF},
]


def test_whatever_is_sent_is_refused_in_utf_8_and_stays_out_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", log_level="info")
    upgrade(settings)
    caplog.handler.setFormatter(Formatter("%(name)s %(message)s"))

    async def test() -> None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://127.0.0.1"
            ) as http,
        ):
            logging.getLogger().addHandler(caplog.handler)  # the application has put its own in place
            assert (await http.put("/v1/collections/c", json={"dim": 3})).status_code == 201
            for body in _BODIES:
                answer = await http.post(
                    "/v1/jobs", content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
                )
                assert answer.status_code in (404, 422), (body, answer.text)
                assert HALF not in answer.json()["detail"]
            for body in _BODIES[:5]:
                params = {"filter": json.dumps(body["input"]["filter"])}
                assert (await http.get("/v1/collections/c/items", params=params)).status_code == 422
            monkey = app.state.revln.db
            monkey.close()
            app.state.revln.db = None  # and what nobody expects
            assert (await http.get(f"/v1/collections/{MARK}")).status_code == 500
            app.state.revln.db = monkey

    try:
        asyncio.run(test())
    finally:
        logging.getLogger().removeHandler(caplog.handler)
    assert "AttributeError" in caplog.text
    assert MARK not in caplog.text
