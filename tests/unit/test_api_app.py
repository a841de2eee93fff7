"""The API's own pieces, without a server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import Body, FastAPI
from fastapi.testclient import TestClient

from api import problems
from api.app import create_app
from api.auth import _address_of
from api.docs import router as docs_router
from api.paging import decode_cursor, encode_cursor
from api.requests import JobRequest
from api.views import matches
from revln.errors import SettingsError, Unavailable, ValidationFailed
from revln.settings import Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "revln.example"])
def test_it_does_not_start_beyond_loopback_without_a_key(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"REVLN_API_HOST={host}")):
        create_app(Settings(api_host=host, data_dir=tmp_path))
    for weak in ("1", "k" * 40, "fifteen-signs-x"):
        with pytest.raises(SettingsError, match="at least 16 characters") as caught:
            create_app(Settings(api_host=host, api_key=weak, data_dir=tmp_path))
        assert weak not in caught.value.message.split()
    create_app(Settings(api_host=host, api_key="0123456789abcdef", data_dir=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_it_starts_without_one(host: str, tmp_path: Path) -> None:
    create_app(Settings(api_host=host, data_dir=tmp_path))


def test_a_cursor_comes_back_as_it_was_and_no_other_is_taken() -> None:
    position = [1795491761.860013, "01a20ba6-0eb0-76b3-bd15-361aa44d290d"]
    assert decode_cursor(encode_cursor(position), float, str) == position
    assert decode_cursor(encode_cursor(["💥/é"]), str) == ["💥/é"]
    assert decode_cursor(None, str) is None
    for wrong in ([1, "a"], ["a", "a"], [1.0], [1.0, "a", "b"], [float("nan"), "a"], [float("inf"), "a"], [1.0, "\0"],
                  [1.0, "\ud800"], [1.0, None], [True, "a"]):  # fmt: skip
        with pytest.raises(ValidationFailed, match="next_cursor"):
            decode_cursor(encode_cursor(wrong), float, str)


@pytest.mark.parametrize(
    ("header", "same"),
    [(None, False), ("", False), ('W/"3"', True), ('"3"', True), ('"1", W/"3"', True), ("*", True), ('W/"33"', False)],
)
def test_an_etag_is_compared_weakly(header: str | None, same: bool) -> None:
    assert matches('W/"3"', header) is same


@pytest.fixture(scope="module")
def small() -> TestClient:
    """Our problems and our body on a route that does nothing."""
    app = FastAPI(title="<b>small</b>", description="<script>alert(1)</script>", docs_url=None)
    problems.install(app)
    app.include_router(docs_router)

    @app.post("/jobs", tags=["jobs"])
    def jobs(body: JobRequest) -> None:
        return

    @app.put("/optional", tags=["jobs"])
    def optional(body: dict[str, Any] | None = Body(None)) -> None:  # noqa: B008 - FastAPI's way
        return

    @app.get("/away", tags=["jobs"])
    def away() -> None:
        raise Unavailable("The database does not answer.")

    @app.get("/broken", tags=["jobs"])
    def broken() -> None:
        raise KeyError("secret")

    return TestClient(app, raise_server_exceptions=False)


def test_what_is_away_is_503_with_a_time_to_come_again(small: TestClient) -> None:
    answer = small.get("/away")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_fault_of_ours_is_500_and_tells_nothing(small: TestClient) -> None:
    answer = small.get("/broken")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["Connection"] == "close"


def test_nothing_at_all_is_fine_where_a_body_is_optional(small: TestClient) -> None:
    assert small.put("/optional").status_code == 200
    assert small.put("/optional", content="null", headers={"Content-Type": "application/json"}).status_code == 200


def test_pointers_step_over_tags_and_not_over_fields_of_their_names(small: TestClient) -> None:
    text = {"text": "a"}
    cases: list[tuple[Any, str]] = [
        ({"kind": "search", "input": {"collection": "c", "queries": [[text, {**text, "(part)": 1}]]}},
         "/input/queries/0/1/(part)"),
        ({"kind": "embed", "input": {"items": [{**text, "metadata": {"float": {"dict": float("nan")}}}]}},
         "/input/items/0/metadata/float/dict"),
        ({"kind": "embed", "input": {"items": [{**text, "~/": 1}]}}, "/input/items/0/~0~1"),
        ({"kind": "index", "input": {"items": [text]}}, "/input/collection"),
        ({"kind": "caption", "input": {"items": [{"image": {"sha256": 1}}]}}, "/input/items/0/image/sha256"),
    ]  # fmt: skip
    for body, pointer in cases:
        answer = small.post("/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_the_page_escapes_what_it_shows(small: TestClient) -> None:
    page = small.get("/docs").text
    assert "&quot;kind&quot;: &quot;search&quot;" in page
    assert "<script" not in page
    assert "<b>small" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_slash_too_many_leads_to_the_same_server_whatever_host_it_was_sent(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, api_key="k"))
    headers = {"Host": "evil.example", "Authorization": "Bearer k"}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        moved = client.get("/healthz/?a=1", headers=headers, follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, "/healthz?a=1")


@pytest.mark.parametrize(
    ("client", "address"), [(("192.0.2.7", 1), "192.0.2.7"), (("x" * 20_000, 1), None), (None, None)]
)
def test_only_an_address_is_audited(client: tuple[str, int] | None, address: str | None) -> None:
    assert _address_of({"type": "http", "client": client}) == address
