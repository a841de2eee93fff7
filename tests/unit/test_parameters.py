"""What a job keeps of its input: read as it is declared, whatever version of revln wrote the row."""

from __future__ import annotations

from typing import Any

import pytest

from revln.jobs.caption_schemas import CaptionParameters
from revln.jobs.index_schemas import BuildParameters, DuplicatesParameters, MigrateParameters, UpsertParameters
from revln.jobs.kinds import KINDS
from revln.jobs.schemas import EmbedParameters, Parameters
from revln.jobs.search_schemas import SearchParameters

SHA = "0f" * 32
# A row as an older version wrote it, its parameters' type, and what it says there.
ROWS: list[tuple[str, dict[str, Any], type[Parameters], dict[str, Any]]] = [
    ("embed", {}, EmbedParameters, {"manifest_sha256": None, "input_type": None, "truncate": None}),
    ("embed", {"manifest": {"sha256": SHA}}, EmbedParameters, {"manifest_sha256": SHA}),
    ("index", {"operation": "upsert", "collection": "c"}, UpsertParameters, {"vectors_of": None}),
    (
        "index",
        {"operation": "upsert", "collection": "c", "vectors_of": "f"},
        UpsertParameters,
        {"brings_vectors": True},
    ),
    (
        "index",
        {"operation": "duplicates", "collection": "c"},
        DuplicatesParameters,
        {"min_score": 0.97, "exact": False},
    ),
    ("index", {"operation": "migrate", "collection": "c"}, MigrateParameters, {"allow_missing": False}),
    ("search", {"collection": "c", "k": 3}, SearchParameters, {"k": 3, "offset": 0, "min_score": None, "dedup": False}),
    ("caption", {"num_beams": 2}, CaptionParameters, {"num_beams": 2, "neighbors": 4, "prompt": "", "top_p": 0.9}),
]


@pytest.mark.parametrize(("kind", "row", "parameters", "says"), ROWS)
def test_a_row_of_an_older_version_is_read_with_the_defaults(
    kind: str, row: dict[str, Any], parameters: type[Parameters], says: dict[str, Any]
) -> None:
    read = KINDS[kind].operation(row).parameters.model_validate(row)
    assert type(read) is parameters
    assert {name: getattr(read, name) for name in says} == says


def test_what_a_newer_version_wrote_besides_is_left_out() -> None:
    row = {"operation": "build", "collection": "c", "index": {"type": "flat"}, "not_known_here": 1}
    read = KINDS["index"].operation(row).parameters.model_validate(row)
    assert isinstance(read, BuildParameters)
    assert read.index.type == "flat"


def test_every_parameter_is_a_field_of_its_kinds_input() -> None:
    for kind in KINDS.values():
        for operation in kind.operations.values() or [kind]:
            assert set(operation.parameters.model_fields) <= set(kind.input.model_fields), operation.name
            assert not {"items", "queries", "ids"} & set(operation.parameters.model_fields), operation.name
