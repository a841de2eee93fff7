"""A toy kind and a toy operation, declared as every kind and operation is, in a process of their own.

``python -m tests.toys DATABASE_URL FOLDER`` runs a job of each over HTTP and prints what came of them. A process of its
own, because the API's request bodies are made from ``KINDS`` when it is imported.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from revln.jobs.index_schemas import INDEX_OPERATIONS, IndexInput, IndexParameters
from revln.jobs.kinds import KINDS, JobKind
from revln.jobs.schemas import ItemsInput, ItemsParameters, JobResult, Operation
from worker.context import Context, Done, Outcome
from worker.handlers.index.collection import open_serving
from worker.handlers.registry import HANDLERS


class LengthParameters(ItemsParameters):
    unit: str = "characters"


class LengthInput(LengthParameters, ItemsInput):
    """Say how long each text is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"text": "four"}]}]})


class LengthResult(JobResult):
    items: list[dict[str, Any]]
    total: int


class SpellParameters(IndexParameters):
    limit: int = 3


class SpellInput(IndexInput):
    """Change a collection, or spell its name."""

    operation: Literal[*INDEX_OPERATIONS, "spell"] = "upsert"  # type: ignore[valid-type, assignment]
    limit: int | None = None


def run_length(context: Context[LengthParameters]) -> Done:
    unit = context.parameters.unit
    return Done([Outcome(one.index, fields={"length": f"{len(one.raw['text'])} {unit}"}) for one in context.todo])


def run_spell(context: Context[SpellParameters]) -> Done:
    letters = open_serving(context).name[: context.parameters.limit]
    return Done([Outcome(at, id=letter) for at, letter in enumerate(letters)])


def declare() -> None:
    KINDS["length"] = JobKind(
        name="length", input=LengthInput, parameters=LengthParameters, result=LengthResult, chunk_items=2
    )
    HANDLERS["length"] = run_length
    INDEX_OPERATIONS["spell"] = Operation(name="spell", parameters=SpellParameters, open_ended=True)
    KINDS["index"] = dataclasses.replace(KINDS["index"], input=SpellInput)
    HANDLERS["spell"] = run_spell


def main(database_url: str, folder: str) -> None:
    declare()
    from tests.inline import inline_stack

    with inline_stack(database_url, Path(folder)) as stack:
        stack.http.put("/v1/collections/abcdef", json={"dim": 2}).raise_for_status()
        texts = [{"text": "x" * length} for length in (1, 22, 333)]
        jobs = {
            "length": {"kind": "length", "input": {"items": texts, "unit": "letters"}},
            "spell": {"kind": "index", "input": {"collection": "abcdef", "operation": "spell", "limit": 5}},
            "other": {"kind": "index", "input": {"collection": "abcdef", "operation": "spell", "exact": True}},
        }
        answers = {
            name: stack.http.post("/v1/jobs", json=job, headers={"Prefer": "wait=30"}).json()
            for name, job in jobs.items()
        }
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
