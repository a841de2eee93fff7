"""What is written down about the API holds: docs/http-api.md, openapi.json, /docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from api import problems
from api.app import create_app
from api.requests import JobRequest
from revln import errors
from revln.errors import RevlnError
from revln.jobs import schemas, search_schemas
from revln.jobs.kinds import KINDS
from revln.settings import ENV_PREFIX, Settings

TEXT = (Path(__file__).parents[2] / "docs/http-api.md").read_text()


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data"))).openapi()


def classes_in(module: Any) -> list[type[RevlnError]]:
    found = [getattr(module, name) for name in module.__all__]
    return [one for one in found if isinstance(one, type) and issubclass(one, RevlnError)]


def test_every_code_of_an_error_stands_in_the_documentation() -> None:
    codes = {error.code for module in (errors, problems) for error in classes_in(module)}
    codes |= {"method_not_allowed", "all_items_failed"}  # made where they happen
    missing = {code for code in codes if f"`{code}`" not in TEXT}
    assert not missing


def test_every_row_of_the_errors_table_has_the_status_that_the_code_has() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", TEXT, re.MULTILINE))
    by_code = {error.code: error for module in (errors, problems) for error in classes_in(module)}
    assert rows.pop("method_not_allowed") == "405"
    for code, status in rows.items():
        assert status == str(next(problems.STATUS[one] for one in by_code[code].__mro__ if one in problems.STATUS)), (
            code
        )


def test_every_route_stands_in_the_documentation(openapi: dict[str, Any]) -> None:
    examples = {
        "{job_id}": ("{id}", "$ID"),
        "{name}": ("holiday", "clip"),
        "{sha256}": ("596aa1…", "9741129e…"),
        "{key_id}": ("5f0e8a7d9c3b2a10",),
        "{webhook_id}": ("msg_01a2150cc2ed717695fc4e5428cd8750",),
    }
    for path in openapi["paths"]:
        variable = next((part for part in examples if part in path), "")
        spelled = [path.replace(variable, word) for word in examples.get(variable, ("",))]
        assert any(one in TEXT for one in spelled), path


def test_every_setting_that_the_documentation_names_exists_and_its_limits_are_the_codes() -> None:
    for name in re.findall(rf"{ENV_PREFIX}(\w+)", TEXT):
        assert name.lower() in Settings.model_fields, name
    for limit in (
        schemas.MAX_INLINE_ITEMS,
        search_schemas.MAX_QUERIES,
        search_schemas.MAX_K,
        search_schemas.MAX_HITS,
        schemas.MAX_TEXT_CHARS,
        schemas.MAX_ID_CHARS,
        schemas.MAX_METADATA_KEYS,
        schemas.MAX_METADATA_BYTES,
        schemas.MAX_METADATA_DEPTH,
        Settings().max_job_items,
        Settings().max_queued_items,
        Settings().max_image_pixels,
    ):
        assert re.search(rf"\b{limit:,}\b", TEXT), limit
    assert Settings().max_body_bytes == 25 * 2**20
    assert "25 MiB" in TEXT


def test_each_kind_has_an_example_that_is_a_good_body(openapi: dict[str, Any]) -> None:
    body = openapi["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["examples"]) == set(KINDS)
    for name, example in body["examples"].items():
        assert TypeAdapter(JobRequest).validate_python(example["value"]).kind == name
        assert example["summary"].endswith(".")


def test_openapi_names_what_every_route_answers_and_its_problems(openapi: dict[str, Any]) -> None:
    for path, verbs in openapi["paths"].items():
        for verb, operation in verbs.items():
            problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
            assert operation["responses"]["4XX"]["content"] == {"application/problem+json": problem}
            assert operation["responses"]["503"]["content"]["application/problem+json"] == problem
            assert "422" not in operation["responses"]
            assert operation["summary"], f"{verb} {path}"
    assert "HTTPValidationError" not in openapi["components"]["schemas"]
