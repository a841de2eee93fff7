"""Whatever a client sends is answered with a problem or ends as one item's error, and the worker lives on."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from api.answers import Problem
from tests import pictures
from tests.stack import Stack, wait_until

A_TEXT = {"text": "a dog"}
DIM = 32
NOWHERE = "0" * 64


def send(stack: Stack, body: Any, **headers: str) -> httpx.Response:
    """POST a job: an object as JSON (NaN and lone surrogates as Python writes them), text and bytes as they are."""
    raw = body if isinstance(body, str | bytes) else json.dumps(body)
    return stack.http.post("/v1/jobs", content=raw, headers={"Content-Type": "application/json", **headers})


def problem(answer: httpx.Response, status: int, code: str) -> Problem:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    body = Problem.model_validate_json(answer.content)
    assert (body.status, body.code) == (status, code), body.detail
    return body


def resolves(body: Any, pointer: str) -> bool:
    """Whether a pointer (RFC 6901) leads to a value of the body, or to one that is missing from an object of it."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for number, step in enumerate(steps):
        if isinstance(body, list) and step.isdecimal() and int(step) < len(body):
            body = body[int(step)]
        elif isinstance(body, dict) and step in body:
            body = body[step]
        else:
            return isinstance(body, dict) and number == len(steps) - 1
    return True


def embed(*items: Any) -> dict[str, Any]:
    return {"kind": "embed", "input": {"items": list(items)}}


def search(*queries: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "search", "input": {"collection": "zoo", "queries": list(queries), **more}}


def index(**input_: Any) -> dict[str, Any]:
    return {"kind": "index", "input": {"collection": "zoo", **input_}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(autouse=True)
def zoo(stack: Stack) -> None:
    assert stack.http.put("/v1/collections/zoo").status_code in (200, 201)


# what, body, pointer, words of the message (the value, the limit, the way out)
REFUSED: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("an unknown kind", {"kind": "train", "input": {}}, "/kind", ("'train'", "embed, index, search, caption")),
    ("no kind", {"input": {"items": [A_TEXT]}}, "/kind", ("embed, index",)),
    ("a kind that is no text", {"kind": ["embed"], "input": {}}, "/kind", ("['embed']",)),
    ("no input", {"kind": "embed"}, "/input", ("required",)),
    ("an input that is no object", {"kind": "embed", "input": [A_TEXT]}, "/input", ("object",)),
    ("an unknown field", {**embed(A_TEXT), "prioritty": "bulk"}, "/prioritty", ("no such field", "/docs")),
    ("an unknown field in an item", embed(A_TEXT, {"text": "a", "txt": 1}), "/input/items/1/txt", ("no such field",)),
    ("a field named like a tag", {**embed(A_TEXT), "(embed)": 1}, "/(embed)", ("no such field",)),
    ("a field with slash and tilde", {**embed(A_TEXT), "a/b~c": 1}, "/a~1b~0c", ("no such field",)),
    ("a field of another kind", {**embed(A_TEXT), "k": 3}, "/k", ("no such field",)),
    ("no items", embed(), "/input/items", ("at least 1 item",)),
    ("items that are null", {"kind": "embed", "input": {"items": None}}, "/input", ("items or manifest",)),
    ("items that are an object", {"kind": "embed", "input": {"items": A_TEXT}}, "/input/items", ("list",)),
    ("an empty item", embed(A_TEXT, {}), "/input/items/1", ("image", "text")),
    ("neither items nor manifest", {"kind": "embed", "input": {}}, "/input", ("items or manifest",)),
    (
        "both items and manifest",
        {"kind": "embed", "input": {"items": [A_TEXT], "manifest": {"sha256": NOWHERE}}},
        "/input",
        ("not both",),
    ),
    ("10,001 items", embed(*[A_TEXT] * 10_001), "/input/items", ("10000", "10001")),
    ("an unknown model", {**embed(A_TEXT), "model": "gpt-9"}, "/model", ("'gpt-9'", "revln-tiny", "GET /v1/models")),
    ("a path as model", {**embed(A_TEXT), "model": "../../etc/passwd"}, "/model", ("GET /v1/models",)),
    (
        "an unknown collection",
        {"kind": "search", "input": {"collection": "nope", "queries": [A_TEXT]}},
        "/input/collection",
        ("'nope'", "PUT /v1/collections/nope"),
    ),
    (
        "a path as collection",
        {"kind": "search", "input": {"collection": "../../etc", "queries": [A_TEXT]}},
        "/input/collection",
        ("'../../etc'", "a-z0-9"),
    ),
    ("k of 0", search(A_TEXT, k=0), "/input/k", ("0", "1")),
    ("k of 10,000,000", search(A_TEXT, k=10_000_000), "/input/k", ("10000000", "1000")),
    ("k of infinity", search(A_TEXT, k=float("inf")), "/input/k", ("finite", "inf")),
    ("k of a half", search(A_TEXT, k=2.5), "/input/k", ("integer", "2.5")),
    ("too many hits in all", search(*[A_TEXT] * 101, k=1000), "/input", ("101", "1000", "100,000", "several")),
    ("1,001 queries", search(*[A_TEXT] * 1001, k=1), "/input/queries", ("1000", "1001")),
    ("a score that cannot be", search(A_TEXT, min_score=1.5), "/input/min_score", ("1.5", "from -1 to 1")),
    ("a score that is a word", search(A_TEXT, min_score="x"), "/input/min_score", ("'x'", "from -1 to 1", '"auto"')),
    ("a score that is a switch", search(A_TEXT, min_score=True), "/input/min_score", ("True", "from -1 to 1")),
    ("no queries", search(), "/input/queries", ("at least 1",)),
    ("a query that is a text", search("a dog"), "/input/queries/0", ("object",)),
    ("a query of no parts", search([]), "/input/queries/0", ("at least 1",)),
    ("a query of 33 parts", search([A_TEXT] * 33), "/input/queries/0", ("32", "33")),
    ("a query of two sources", search({"text": "a", "id": "b"}), "/input/queries/0", ("text and id", "exactly one")),
    ("a NaN in a vector", search({"vector": [float("nan"), 1.0]}), "/input/queries/0/vector/0", ("finite", "nan")),
    (
        "an infinity in a part's vector",
        search([A_TEXT, {"vector": [1.0, float("-inf")]}]),
        "/input/queries/0/1/vector/1",
        ("finite", "-inf"),
    ),
    ("a zero vector", search({"vector": [0] * DIM}), "/input/queries/0/vector", ("norm", "1e-12")),
    ("a vector that overflows", search({"vector": [1e308] * DIM}), "/input/queries/0/vector", ("norm", "inf")),
    ("a vector whose square does", search({"vector": [1e200] * DIM}), "/input/queries/0/vector", ("1e100", "e+200")),
    ("an empty vector", search({"vector": []}), "/input/queries/0/vector", ("at least 1",)),
    ("a vector of 31", search(A_TEXT, {"vector": [1] * 31}), "/input/queries/1/vector", ("31", "32", "'zoo'")),
    ("a part's vector of 33", search([A_TEXT, {"vector": [1] * 33}]), "/input/queries/0/1/vector", ("33", "32")),
    ("a weight of 0", search([{"text": "a", "weight": 0}]), "/input/queries/0/0/weight", ("remove",)),
    ("a weight of NaN", search({"text": "a", "weight": float("nan")}), "/input/queries/0/weight", ("finite",)),
    (
        "a hash that is none",
        embed(*[A_TEXT] * 3, {"image": {"sha256": "XYZ"}}),
        "/input/items/3/image/sha256",
        ("XYZ",),
    ),
    ("a path as hash", embed({"image": {"sha256": "../" * 21 + "x"}}), "/input/items/0/image/sha256", ("[0-9a-f]",)),
    ("an image of no source", embed({"image": {}}), "/input/items/0/image", ("url, sha256, base64", "none")),
    (
        "an image of two sources",
        embed({"image": {"sha256": NOWHERE, "url": "http://a"}}),
        "/input/items/0/image",
        ("url and sha256",),
    ),
    ("base64 that is none", embed({"image": {"base64": "*"}}), "/input/items/0/image/base64", ("not base64",)),
    ("base64 with é", embed({"image": {"base64": "é"}}), "/input/items/0/image/base64", ("not base64",)),
    (
        "a data URI that is not in base64",
        embed({"image": {"base64": "data:image/svg+xml,<svg/>"}}),
        "/input/items/0/image/base64",
        ("not base64", "data URI"),
    ),
    (
        "a query's base64 that is none",
        search([A_TEXT, {"image": {"base64": "*"}}]),
        "/input/queries/0/1/image/base64",
        ("not base64",),
    ),
    (
        "a text of 100,000 words",
        embed(A_TEXT, {"text": "word " * 100_000}),
        "/input/items/1/text",
        ("500,000", "20,000", "shorten"),
    ),
    ("a blank text", embed({"text": " \n\t"}), "/input/items/0/text", ("white space",)),
    ("an empty text", embed({"text": ""}), "/input/items/0/text", ("at least 1 character",)),
    ("a text that is a number", embed({"text": 7}), "/input/items/0/text", ("string", "7")),
    ("an id of 513 characters", embed({"id": "x" * 513, **A_TEXT}), "/input/items/0/id", ("513", "512")),
    ("an empty id", embed({"id": "", **A_TEXT}), "/input/items/0/id", ("at least 1 character",)),
    ("NUL in a text", embed({"text": "a\0b"}), "/input/items/0/text", ("U+0000", "remove")),
    ("NUL in an id", index(items=[{"id": "a\0", **A_TEXT}]), "/input/items/0/id", ("U+0000",)),
    ("NUL in an id to delete", index(operation="delete", ids=["a", "\0"]), "/input/ids/1", ("U+0000",)),
    ("NUL in an item's metadata", embed({**A_TEXT, "metadata": {"a": ["\0"]}}), "/input/items/0/metadata", ("U+0000",)),
    ("NUL in a key of metadata", {**embed(A_TEXT), "metadata": {"\0": 1}}, "/metadata", ("U+0000",)),
    ("NUL in a URL", embed({"image": {"url": "http://a/\0"}}), "/input/items/0/image/url", ("U+0000",)),
    ("half a surrogate in a text", embed({"text": "a\ud800"}), "/input/items/0/text", ("unicode",)),
    ("half a surrogate in an id", embed({"id": "\udc00", **A_TEXT}), "/input/items/0/id", ("unicode",)),
    ("half a surrogate in metadata", {**embed(A_TEXT), "metadata": {"a": "\ud800"}}, "/metadata", ("U+D800",)),
    ("half a surrogate as model", {**embed(A_TEXT), "model": "\ud800"}, "/model", ("unicode",)),
    ("half a surrogate as kind", {"kind": "\ud800", "input": {}}, "/kind", ("embed",)),
    ("metadata of 65 keys", {**embed(A_TEXT), "metadata": {str(n): n for n in range(65)}}, "/metadata", ("64",)),
    ("metadata of 20 kB", {**embed(A_TEXT), "metadata": {"a": "x" * 20_000}}, "/metadata", ("20,009", "16,384")),
    (
        "an item's metadata of 20 kB",
        embed({**A_TEXT, "metadata": {"a": "é" * 10_000}}),
        "/input/items/0/metadata",
        ("20,009", "16,384", "shorten"),
    ),
    ("metadata nested 900 deep", {**embed(A_TEXT), "metadata": {"a": nested(900)}}, "/metadata", ("16", "flatten")),
    ("NaN in metadata", {**embed(A_TEXT), "metadata": {"a": [{"b": float("nan")}]}}, "/metadata/a/0/b", ("finite",)),
    ("metadata that is a list", {**embed(A_TEXT), "metadata": [1]}, "/metadata", ("dictionary",)),
    ("a delete with items", index(operation="delete", items=[A_TEXT]), "/input", ("delete", "ids", "items")),
    ("an upsert with ids", index(ids=["a"]), "/input", ("upsert", "items, manifest", "ids")),
    ("an unknown operation", index(operation="drop", ids=["a"]), "/input/operation", ("'upsert'", "'migrate'")),
    (
        "a caption of a text",
        {"kind": "caption", "input": {"items": [{"image": {"sha256": NOWHERE}}, A_TEXT]}},
        "/input/items/1/image",
        ("required",),
    ),
    (
        "more captions than beams",
        {"kind": "caption", "input": {"items": [{"image": {"sha256": NOWHERE}}], "num_captions": 5}},
        "/input",
        ("num_beams=3", "raise num_beams"),
    ),
    (
        "a manifest never uploaded",
        {"kind": "embed", "input": {"manifest": {"sha256": NOWHERE}}},
        "/input/manifest/sha256",
        (NOWHERE, "POST /v1/manifests"),
    ),
    ("a deadline in the past", {**embed(A_TEXT), "deadline_s": -1}, "/deadline_s", ("-1", "0")),
    ("a retention of ages", {**embed(A_TEXT), "retention_s": 1e12}, "/retention_s", ("315360000",)),
    ("an unknown priority", {**embed(A_TEXT), "priority": "urgent"}, "/priority", ("'urgent'", "'bulk'")),
]


@pytest.mark.parametrize(
    ("body", "pointer", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_body_that_breaks_the_schema_is_422_with_the_place_and_the_reason(
    stack: Stack, body: dict[str, Any], pointer: str, words: tuple[str, ...]
) -> None:
    refused = problem(send(stack, body), 422, "validation_failed")
    assert refused.errors is not None
    assert [error.pointer for error in refused.errors] == [pointer] * len(refused.errors)
    assert resolves(json.loads(json.dumps(body)), pointer)
    for word in words:
        assert word in refused.errors[0].detail
    assert refused.detail.startswith(pointer)


def test_ten_thousand_bad_items_are_answered_with_a_hundred_errors(stack: Stack) -> None:
    answer = send(stack, embed(*[{"text": ""}] * 10_000))
    refused = problem(answer, 422, "validation_failed")
    assert refused.errors is not None
    assert len(refused.errors) == 100
    assert "(and 9999 more)" in refused.detail
    assert len(answer.content) < 20_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"kind": "embed", ', "character 18"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"kind":"embed","metadata":' + '{"a":' * 10_000 + "1" + "}" * 10_001, "nested too deeply"),
        (b'{"kind": "\xff\xfe"}', "not utf-8"),
        ('{"kind": "search", "input": {"k": ' + "9" * 5_000 + "}}", "too many digits"),
        ("{'kind': 'embed'}", "not JSON"),
        ("\x00", "not JSON"),
    ],
    ids=["cut", "deep lists", "deep objects", "no UTF-8", "a number of 5,000 digits", "Python", "NUL"],
)
def test_a_body_that_is_not_json_is_400(stack: Stack, body: str | bytes, words: str) -> None:
    assert words in problem(send(stack, body), 400, "malformed_json").detail


@pytest.mark.parametrize("body", ["[1, 2]", '"embed"', "null", "7", "true", ""])
def test_a_body_that_is_no_object_is_422(stack: Stack, body: str) -> None:
    refused = problem(send(stack, body), 422, "validation_failed")
    assert refused.errors is not None
    assert refused.errors[0].pointer == ""
    assert "a JSON object is wanted" in refused.detail


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", "nonsense"])
def test_a_body_of_another_content_type_is_415(stack: Stack, content_type: str) -> None:
    refused = problem(send(stack, embed(A_TEXT), **{"Content-Type": content_type}), 415, "unsupported_media_type")
    assert content_type in refused.detail
    assert "application/json" in refused.detail


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_out_of_bounds_is_422(stack: Stack, key: str) -> None:
    refused = problem(send(stack, embed(A_TEXT), **{"Idempotency-Key": key}), 422, "validation_failed")
    assert refused.errors is not None
    assert refused.errors[0].pointer == "/idempotency-key"


# --- bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images", "/v1/collections/zoo"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_body_of_30_mb_is_413(stack: Stack, path: str, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 2**20

    content = pieces() if chunked else b"x" * 30 * 2**20
    method = "PUT" if "collections" in path else "POST"
    answer = stack.http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    refused = problem(answer, 413, "payload_too_large")
    assert str(stack.settings.max_body_bytes) in refused.detail
    assert "manifest" in refused.detail


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "noise": (pictures.not_an_image, "not a picture"),
    "nothing": (lambda: b"", "no picture at all"),
    "a page": (pictures.html, "an HTML page"),
    "a drawing": (pictures.svg, "an SVG drawing"),
    "a truncated JPEG": (pictures.truncated_jpeg, "truncated"),
    "a bomb": (pictures.bomb_png, "REVLN_MAX_IMAGE_PIXELS"),
    "a TIFF": (pictures.tiff, "a TIFF"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_picture_is_422_as_an_upload_and_one_items_error_in_a_job(stack: Stack, what: str) -> None:
    make, words = UNREADABLE[what]
    assert words in problem(stack.http.post("/v1/images", content=make()), 422, "invalid_image").detail
    assert words in problem(stack.http.post("/v1/images", files={"file": make()}), 422, "invalid_image").detail
    encoded = base64.b64encode(make()).decode()
    _one_bad_item(stack, {"image": {"base64": encoded}}, "invalid_image", words)


READABLE = {
    "1 × 1": pictures.one_pixel_png,
    "an animated GIF": pictures.animated_gif,
    "CMYK": pictures.cmyk_jpeg,
    "16 bits": pictures.gray16_png,
    "a palette": pictures.palette_png,
    "transparent": pictures.transparent_png,
    "progressive": pictures.progressive_jpeg,
    "turned": pictures.rotated_jpeg,
    "a JPEG with a ZIP behind it": pictures.polyglot,
}


@pytest.mark.parametrize("what", READABLE)
def test_an_odd_but_good_picture_is_embedded_and_captioned(stack: Stack, what: str) -> None:
    answer = stack.http.post("/v1/images", content=READABLE[what]())
    assert answer.status_code in (200, 201), answer.text
    item = {"image": {"sha256": answer.json()["sha256"]}}
    for kind in ("embed", "caption"):
        job = send(stack, {"kind": kind, "input": {"items": [item]}}, Prefer="wait=60").json()
        assert (job["status"], job["counts"]["failed"]) == ("succeeded", 0)


def test_the_first_frame_of_an_animation_is_the_one_that_is_seen(stack: Stack) -> None:
    first = pictures.saved(Image.new("RGB", (64, 48), pictures.RED), "GIF")
    items = [{"image": {"base64": base64.b64encode(data).decode()}} for data in (pictures.animated_gif(), first)]
    result = send(stack, embed(*items), Prefer="wait=60").json()["result"]["items"]
    assert result[0]["embedding"] == pytest.approx(result[1]["embedding"], abs=1e-5)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"hello"),
        ("multipart/form-data; boundary=x", b"hello"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=" + "x" * 500, b"--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--x--\r\n'),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nhi'),
    ],
    ids=["no boundary", "no parts", "nothing", "a boundary of 500", "no file", "cut"],
)
def test_a_form_that_cannot_be_read_is_a_problem(stack: Stack, content_type: str, body: bytes) -> None:
    answer = stack.http.post("/v1/images", content=body, headers={"Content-Type": content_type})
    assert answer.status_code in (400, 422)
    assert Problem.model_validate_json(answer.content).code in ("bad_request", "validation_failed")


def test_a_form_of_two_files_or_of_many_fields_is_a_problem(stack: Stack) -> None:
    two = stack.http.post("/v1/images", files=[("a", pictures.jpeg()), ("b", pictures.png())])
    assert "files" in problem(two, 400, "bad_request").detail
    many = stack.http.post("/v1/images", files={"a": pictures.jpeg()}, data={str(n): "x" for n in range(20)})
    assert "fields" in problem(many, 400, "bad_request").detail


# --- items that cannot be done -----------------------------------------------------------------------------------


def _one_bad_item(stack: Stack, bad: dict[str, Any], code: str, words: str, kind: str = "embed") -> None:
    """In a job of three the bad one carries its error and its neighbours their results."""
    items = [{"id": "before", "text": f"text {uuid4()}"}, {"id": "bad", **bad}, {"id": "after", **A_TEXT}]
    job = send(stack, {"kind": kind, "input": {"items": items}}, Prefer="wait=60").json()
    assert (job["status"], job["counts"]) == ("succeeded", {"total": 3, "succeeded": 2, "failed": 1})
    before, failed, after = job["result"]["items"]
    assert len(before["embedding"]) == len(after["embedding"]) == DIM
    assert (failed["id"], failed["error"]["code"]) == ("bad", code)
    assert words in failed["error"]["detail"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.jpg", "file:///etc/passwd", "ftp://a/b", "http://", "not a url", "http://[::1"]
)
def test_a_url_that_is_not_fetched_is_one_items_error(stack: Stack, url: str) -> None:
    _one_bad_item(stack, {"image": {"url": url}}, "fetch_refused", "REVLN_FETCH_URLS")


def test_an_image_never_uploaded_is_one_items_error(stack: Stack) -> None:
    _one_bad_item(stack, {"image": {"sha256": NOWHERE}}, "item_not_found", NOWHERE)


def test_queries_that_cannot_be_answered_are_errors_beside_those_that_can(stack: Stack) -> None:
    queries = [
        {"text": "a dog"},
        [{"text": "a dog", "weight": 1}, {"text": "a dog", "weight": -1}],
        {"id": "'; DROP TABLE items; --"},
        {"image": {"sha256": NOWHERE}},
        {"vector": [1e-11] + [0] * (DIM - 1)},
        {"vector": [1e90] * DIM},
    ]
    job = send(stack, search(*queries), Prefer="wait=60").json()
    assert (job["status"], job["counts"]["failed"]) == ("succeeded", 3)
    errors = [one.get("error", {}).get("code") for one in job["result"]["results"]]
    assert errors == [None, "invalid_item", "item_not_found", "item_not_found", None, None]


@pytest.mark.parametrize(
    "item_id", ["../../etc/passwd", "'; DROP TABLE jobs; --", "%00", "a\nb", "\u202e", "💥", "/", " ", "a" * 512]
)
def test_an_id_is_only_a_text(stack: Stack, item_id: str) -> None:
    item = {"id": item_id, "text": "found by its odd id", "metadata": {item_id: item_id}}
    job = send(stack, index(items=[item]), Prefer="wait=60", **{"Idempotency-Key": uuid4().hex}).json()
    assert job["result"]["items"][0]["id"] == item_id
    hit = send(stack, search({"id": item_id}), Prefer="wait=60").json()["result"]["results"][0]["hits"][0]
    assert (hit["id"], hit["metadata"]) == (item_id, item["metadata"]) or hit["score"] > 0.999
    gone = send(stack, index(operation="delete", ids=[item_id, "never"]), Prefer="wait=60").json()["result"]["items"]
    assert "seq" in gone[0]
    assert gone[1]["error"]["code"] == "item_not_found"


# --- manifests ---------------------------------------------------------------------------------------------------


def _manifest(stack: Stack, content: bytes) -> dict[str, Any]:
    answer = stack.http.post("/v1/manifests", content=content)
    assert answer.status_code == 201, answer.text
    return {"manifest": {"sha256": answer.json()["sha256"]}}


def test_a_manifest_of_no_bytes_is_422(stack: Stack) -> None:
    assert "no bytes" in problem(stack.http.post("/v1/manifests"), 422, "validation_failed").detail


def test_a_manifest_without_items_is_422(stack: Stack) -> None:
    refused = problem(stack.http.post("/v1/manifests", content=b"\n\n  \n\t\r\n"), 422, "validation_failed")
    assert "blank lines alone" in refused.detail


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\x1f\x8b\x08\x00rubbish\n\n\x00", b"id,text\n1,a dog\n"])
def test_what_has_no_line_of_json_is_no_manifest(stack: Stack, content: bytes) -> None:
    refused = problem(stack.http.post("/v1/manifests", content=content), 422, "validation_failed")
    assert "lines is JSON" in refused.detail


def test_a_manifest_is_read_from_gzip_and_kept_as_it_was(stack: Stack) -> None:
    lines = b'{"text": "a"}\n\n{"text": "b"}\n'
    for coding, body in (("gzip", gzip.compress(lines)), ("identity", lines)):
        answer = stack.http.post("/v1/manifests", content=body, headers={"Content-Encoding": coding})
        told = answer.json()
        assert (answer.status_code, told["lines"], told["size_bytes"]) == (201, 2, len(lines))
        assert told["sha256"] == hashlib.sha256(lines).hexdigest()
    refused = stack.http.post("/v1/manifests", content=lines, headers={"Content-Encoding": "br"})
    problem(refused, 415, "unsupported_media_type")


def test_a_manifests_line_without_end_is_422(stack: Stack) -> None:
    content = b'{"text": "a"}\n{"text": "' + b"x" * 2**21 + b'"}'
    refused = problem(stack.http.post("/v1/manifests", content=content), 422, "validation_failed")
    assert "line 2 is longer than 1,048,576 bytes" in refused.detail


BAD_LINES = [
    b"{not json", b"[]", b"null", b"7", b'"text"', b"{}", b'{"text": ""}', b'{"text": "a", "x": 1}',
    b'{"text": "\xff"}',
    b'{"text": "a\\u0000b"}', b'{"id": "\\ud800", "text": "x"}', b'{"id": "\\u0000", "text": "x"}',
    b'{"text": "x", "metadata": {"a": NaN}}', b'{"text": "x", "metadata": {"\\u0000": 1}}',
    b'{"text": "x", "metadata": {"a": "\\udfff"}}', b'{"text": "x", "metadata": {"a": "' + b"x" * 20_000 + b'"}}',
    b"[" * 5_000, b"9" * 5_000, b'{"image": {"base64": "aGk="}}', b'{"image": {"url": "http://10.0.0.1/"}}',
    b'{"image": {"sha256": "' + b"0" * 64 + b'"}}', b"\x00", b"\xef\xbb\xbf{}",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["embed", "index"])
def test_each_bad_line_of_a_manifest_is_its_own_error(stack: Stack, kind: str) -> None:
    lines = [b'{"id": "first", "text": "good"}', *BAD_LINES, b'{"id": "last", "text": "good too"}']
    input_ = _manifest(stack, b"\r\n".join(lines))
    if kind == "index":
        input_["collection"] = "zoo"
    job = send(stack, {"kind": kind, "input": input_}, Prefer="wait=60").json()
    assert job["status"] == "succeeded", job["error"]
    items = job["result"]["items"]
    assert [item["index"] for item in items if "error" not in item] == [0, len(lines) - 1]
    assert {item["error"]["code"] for item in items[1:-1]} == {"invalid_item", "fetch_refused", "item_not_found"}


# --- routes ------------------------------------------------------------------------------------------------------

ABSENT = "7c874f84-973b-4286-9932-717050f2d47f"  # the id of nothing; always the same, for it names tests


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", f"/v1/jobs/{job}{part}") for job in (ABSENT, "x", "%00", "%ff", "..", "' OR 1=1 --", "a" * 5_000)
          for part in ("", "/result", "/events")],
        ("POST", f"/v1/jobs/{ABSENT}/cancel"), ("POST", f"/v1/jobs/{ABSENT}/retry"), ("DELETE", f"/v1/jobs/{ABSENT}"),
        ("GET", f"/v1/images/{NOWHERE}"), ("GET", f"/v1/images/{NOWHERE}?width=64"),
        ("GET", "/v1/collections/nope"), ("GET", "/v1/collections/nope/items"), ("DELETE", "/v1/collections/nope"),
        ("GET", "/nope"), ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd"), ("GET", "/v1/images/..%2f..%2fetc"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_404(stack: Stack, method: str, path: str) -> None:
    assert len(problem(stack.http.request(method, path), 404, "not_found").detail) < 10_000


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/v1/jobs", "GET, HEAD, POST"), ("PATCH", f"/v1/jobs/{ABSENT}", "DELETE, GET, HEAD"),
     ("DELETE", "/v1/images", "POST"), ("POST", "/healthz", "GET, HEAD"), ("GET", f"/v1/jobs/{ABSENT}/cancel", "POST"),
     ("OPTIONS", "/v1/jobs", "GET, HEAD, POST"), ("TRACE", "/v1/models", "GET, HEAD"),
     ("PATCH", "/v1/collections/zoo", "DELETE, GET, HEAD, PUT")],
)  # fmt: skip
def test_a_wrong_method_is_405(stack: Stack, method: str, path: str, allowed: str) -> None:
    answer = stack.http.request(method, path)
    assert method in problem(answer, 405, "method_not_allowed").detail
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "path",
    ["/v1/jobs", "/healthz", "/docs", "/openapi.json", "/v1/models", f"/v1/jobs/{ABSENT}", "/v1/jobs?limit=0", "/x"],
)
def test_head_is_get_without_the_body(stack: Stack, path: str) -> None:
    got, answer = stack.http.get(path), stack.http.head(path)
    assert answer.content == b""
    for name in ("Content-Type", "Cache-Control", "ETag"):
        assert answer.headers.get(name) == got.headers.get(name)
    assert (answer.status_code, answer.headers["Content-Length"]) == (got.status_code, got.headers["Content-Length"])


def test_head_of_a_stream_of_events_ends(stack: Stack) -> None:
    job = send(stack, {"kind": "embed", "input": {"items": [{"text": "x"}]}}).json()
    answer = stack.http.head(f"/v1/jobs/{job['id']}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    problem(stack.http.request("GET", f"/v1/jobs/{job['id']}/cancel"), 405, "method_not_allowed")
    assert stack.http.head(f"/v1/jobs/{job['id']}/cancel").status_code == 405


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/jobs?limit=-1", "/limit"), ("/v1/jobs?limit=0", "/limit"), ("/v1/jobs?limit=" + "9" * 20, "/limit"),
        ("/v1/jobs?limit=" + "9" * 5_000, "/limit"), ("/v1/jobs?limit=abc", "/limit"),
        ("/v1/jobs?status=nope", "/status"),
        ("/v1/jobs?kind=nope", "/kind"), ("/v1/jobs?created_after=yesterday", "/created_after"),
        ("/v1/jobs?created_after=1e30", "/created_after"), ("/v1/jobs?created_after=1700000000", "/created_after"),
        ("/v1/jobs?cursor=x", "/cursor"),
        ("/v1/jobs?cursor=" + "W" * 50_000, "/cursor"),
        ("/v1/collections/zoo/items?limit=10001", "/limit"), ("/v1/collections/zoo/items?cursor=x", "/cursor"),
        ("/v1/collections/NOPE..", "/name"), ("/v1/collections/" + "a" * 64, "/name"),
        ("/v1/images/xyz", "/sha256"), (f"/v1/images/{NOWHERE}?width=0", "/width"),
        (f"/v1/images/{NOWHERE}?width=99999", "/width"), (f"/v1/images/{NOWHERE}?width=wide", "/width"),
    ],
)  # fmt: skip
def test_a_parameter_out_of_bounds_is_422_with_its_name(stack: Stack, path: str, pointer: str) -> None:
    refused = problem(stack.http.get(path), 422, "validation_failed")
    assert refused.errors is not None
    assert [error.pointer for error in refused.errors] == [pointer]


@pytest.mark.parametrize(
    "query",
    ["?created_after=0001-01-01T00:00:00", "?created_after=9999-12-31T23:59:59-12:00",
     "?tag=%00&collection=%00", "?collection=%27%20OR%201=1--", "?tag=%F0%9F%92%A5", "?unknown=1", "?limit=1&limit=2"],
)  # fmt: skip
def test_an_odd_but_possible_listing_is_answered(stack: Stack, query: str) -> None:
    assert stack.http.get("/v1/jobs" + query).status_code == 200


@pytest.mark.parametrize(
    "query", ["?wait=-1", "?wait=nan", "?wait=inf", "?wait=601", "/result?offset=-1", "/result?limit=0",
              "/result?limit=10001", "/result?offset=" + "9" * 19, "/result?offset=1.5"],
)  # fmt: skip
def test_waits_and_pages_out_of_bounds_are_422(stack: Stack, query: str) -> None:
    job = send(stack, embed(A_TEXT), Prefer="wait=60").json()
    problem(stack.http.get(job["urls"]["self"] + query), 422, "validation_failed")


@pytest.mark.parametrize("seen", ["x", "-1", "", "9" * 30])
def test_a_last_event_id_that_is_none_is_422(stack: Stack, seen: str) -> None:
    job = send(stack, embed(A_TEXT), Prefer="wait=60").json()
    answer = stack.http.get(job["urls"]["events"], headers={"Last-Event-ID": seen})
    refused = problem(answer, 422, "validation_failed")
    assert refused.errors is not None
    assert refused.errors[0].pointer == "/last-event-id"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"model": "nope"}, "/model"), ({"metadata": {"a": "\0"}}, "/metadata"), ({"size": 3}, "/size"),
     ({"dim": 0}, "/dim"), ({"metadata": {"a": "x" * 20_000}}, "/metadata"), ([], ""), ({"model": 7}, "/model")],
)  # fmt: skip
def test_a_collection_is_made_of_good_parts_only(stack: Stack, body: Any, pointer: str) -> None:
    refused = problem(stack.http.put("/v1/collections/fresh", json=body), 422, "validation_failed")
    assert refused.errors is not None
    assert [error.pointer for error in refused.errors] == [pointer]
    problem(stack.http.get("/v1/collections/fresh"), 404, "not_found")


# --- whatever comes ----------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_PIXEL = {"base64": base64.b64encode(pictures.one_pixel_png()).decode()}
_GOOD: list[dict[str, Any]] = [
    {**embed({"id": "a", **A_TEXT, "metadata": {"n": [1]}}, {"image": {"sha256": NOWHERE}}), "metadata": {"tag": "x"}},
    {**embed({"image": {"url": "http://a/b"}}), "priority": "bulk", "deadline_s": 60, "retention_s": 60},
    {**index(items=[{"id": "a", "image": _PIXEL, "text": "b"}]), "model": "revln-tiny"},
    index(operation="delete", ids=["a", "b"]),
    search(A_TEXT, [{"id": "a", "weight": 2}, {"vector": [0.5] * DIM, "weight": -1}], k=3, min_score=0.1),
    {"kind": "caption", "input": {"items": [{"image": _PIXEL}], "collection": "zoo", "neighbors": 2, "num_beams": 2,
                                  "num_captions": 2, "max_new_tokens": 2, "temperature": 0, "prompt": "a"}},
]  # fmt: skip


@st.composite
def _spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """A good body of its kind with one of its values replaced by anything, left out, or joined by another."""
    body: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(_GOOD))))
    kind = body.pop("kind")
    inside: Any = body
    while True:
        key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
        if not isinstance(inside[key], dict | list) or not inside[key] or draw(st.integers(0, 3)) == 0:
            break
        inside = inside[key]
    match draw(st.sampled_from(["leave", "replace", "replace", "replace", "remove", "add"])):
        case "replace":
            inside[key] = draw(_json)
        case "remove" if len(inside) > 1:
            del inside[key]
        case "add" if isinstance(inside, dict):
            inside[draw(st.text(max_size=6))] = draw(_json)
    return {"kind": kind, **body}


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=_spoilt())
def test_no_body_at_all_makes_an_error_of_ours(stack: Stack, body: dict[str, Any]) -> None:
    answer = send(stack, body)
    if answer.status_code == 202:
        return
    refused = Problem.model_validate_json(answer.content)
    assert answer.status_code in (409, 422), refused
    for error in refused.errors or ():
        assert resolves(json.loads(json.dumps(body)), error.pointer), (error, body)


def test_after_all_that_the_same_worker_does_a_good_job(stack: Stack) -> None:
    assert psutil.Process(stack.pid("worker")).status() != psutil.STATUS_ZOMBIE
    job = send(stack, embed(A_TEXT), Prefer="wait=60").json()
    assert (job["status"], job["counts"]["failed"]) == ("succeeded", 0)

    def nothing_open() -> bool:
        return not any(
            stack.http.get("/v1/jobs", params={"status": status}).json()["jobs"] for status in ("queued", "running")
        )

    wait_until(nothing_open, what="the end of all jobs")
    for job in stack.http.get("/v1/jobs", params={"status": "failed", "limit": 1000}).json()["jobs"]:
        assert job["error"]["code"] == "all_items_failed", job["error"]
    assert " 500 " not in stack.log("api")
    assert "Traceback" not in stack.log("api")
