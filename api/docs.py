"""/docs: the API on one page, made from openapi.json here and not by a script from elsewhere.

FastAPI's own page loads its viewer from another host, which a closed network does not reach.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse

from api.headers import content_policy

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } summary { cursor: pointer; padding: .3rem 0 }
details { border-bottom: 1px solid #eee } details > div { margin: 0 0 1rem 1.5rem }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f6f6f4; border-radius: 3px; padding: .1rem .3rem }
pre { padding: .7rem; overflow: auto } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #eee }
.verb { display: inline-block; width: 4.5rem; font-weight: 600 } .note { color: #666 }
.get { color: #1a66b3 } .post { color: #2a7d2f } .put { color: #a15c00 } .delete { color: #b3261e }
"""
_POLICY = content_policy(f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'")
_CODE = re.compile(r"``?([^`]+)``?")
_LIMITS = {
    "minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}", "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters", "minItems": "≥ {} items", "maxItems": "≤ {} items", "maxProperties": "≤ {} keys",
    "pattern": "matches {}",
}  # fmt: skip


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    return HTMLResponse("".join(_page(app.openapi())), headers={"Content-Security-Policy": _POLICY})


def _page(api: dict[str, Any]) -> Iterator[str]:
    info = api["info"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info['title'])} API</title>"
    yield f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
    yield f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info['description'])}</p>"
    yield "<p>For programs: <a href=openapi.json>openapi.json</a>. <a href=#schemas>Schemas</a> are at the end.</p>"
    by_tag: dict[str, list[str]] = {}
    for path, verbs in api["paths"].items():
        for verb, operation in verbs.items():
            by_tag.setdefault(operation["tags"][0], []).append("".join(_operation(verb, path, operation)))
    for tag, operations in by_tag.items():
        yield f"<h2>{_text(tag)}</h2>{''.join(operations)}"
    yield "<h2 id=schemas>Schemas</h2>"
    for name, schema in sorted(api["components"]["schemas"].items()):
        yield f"<details id='{_text(name)}' open><summary><b>{_text(name)}</b></summary><div>"
        yield f"<p>{_text(schema.get('description', ''))}</p>{''.join(_fields(schema))}</div></details>"


def _operation(verb: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<details><summary><span class='verb {verb}'>{verb.upper()}</span><code>{_text(path)}</code> "
    yield f"{_text(operation['summary'])}</summary><div><p>{_text(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>Parameter<th>In<th>Value<th>"
        for one in parameters:
            name = f"<code>{_text(one['name'])}</code>" + (" (required)" if one["required"] else "")
            about = _text(one.get("description", ""))
            yield f"<tr><td>{name}<td>{_text(one['in'])}<td>{_type(one['schema'])}<td>{about}"
        yield "</table>"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, <code>{_text(media)}</code>: {_type(content.get('schema', {}))}</p>"
        for name, example in content.get("examples", {}).items():
            shown = json.dumps(example["value"], indent=2)
            yield f"<p class=note>{_text(name)}: {_text(example['summary'])}</p><pre>{_text(shown)}</pre>"
    yield "<table><tr><th>Answer<th><th>"
    for status, answer in sorted(operation["responses"].items()):
        kinds = " or ".join(
            f"<code>{_text(media)}</code> {_type(content.get('schema', {}))}"
            for media, content in answer.get("content", {}).items()
        )
        yield f"<tr><td>{_text(status)}<td>{_text(answer['description'])}<td>{kinds}"
    yield "</table></div></details>"


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    yield "<table><tr><th>Field<th>Value<th>"
    for name, field in schema["properties"].items():
        required = " (required)" if name in schema.get("required", ()) else ""
        yield f"<tr><td><code>{_text(name)}</code>{required}<td>{_type(field)}<td>{_text(field.get('description', ''))}"
    yield "</table>"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        words = " or ".join(_type(one) for one in choices)
    elif "const" in schema or "enum" in schema:
        words = " or ".join(
            f"<code>{_text(json.dumps(one))}</code>" for one in schema.get("enum", [schema.get("const")])
        )
    elif schema.get("type") == "array":
        words = f"list of {_type(schema.get('items', {}))}"
    else:
        words = _text(schema.get("format") or schema.get("type") or "any JSON")
    limits = [_text(text.format(_number(schema[key]))) for key, text in _LIMITS.items() if key in schema]
    default = [f"default {_text(json.dumps(schema['default']))}"] if schema.get("default") not in (None, {}, "") else []
    return words + (f" <span class=note>({', '.join(limits + default)})</span>" if limits + default else "")


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    """Escaped, with paragraphs and `code` as docstrings have them."""
    return _CODE.sub(r"<code>\1</code>", escape(str(value))).replace("\n\n", "<p>")
