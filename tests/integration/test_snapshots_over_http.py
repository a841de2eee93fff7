"""Builds over HTTP: a job like any other, a list of what was built, and a way back."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from click.testing import CliRunner

from revln.cli.snapshots import build_command, rollback_command, snapshots_command
from revln.errors import Conflict, NotFound, ValidationFailed
from tests.collections import clustered
from tests.stack import Stack

DIM, ROWS = 16, 300


@pytest.fixture
def name(stack: Stack) -> str:
    name = f"built-{uuid4().hex[:10]}"
    stack.client.create_collection(name, dim=DIM)
    return name


def fill(stack: Stack, name: str, rows: np.ndarray, first: int = 0) -> None:
    items = [{"id": f"i{first + at}", "vector": row.tolist()} for at, row in enumerate(rows)]
    done(stack, {"collection": name, "items": items})


def done(stack: Stack, asked: dict[str, Any]) -> dict[str, Any]:
    job = stack.client.wait(stack.client.submit("index", asked)["id"], 120)
    assert job["status"] == "succeeded", job["error"]
    return stack.client.result(job["id"])


def build(stack: Stack, name: str, **index: Any) -> dict[str, Any]:
    answer = done(stack, {"collection": name, "operation": "build", "index": index})
    built: dict[str, Any] = answer["items"][0]["snapshot"]
    return built


def nearest(stack: Stack, name: str, row: np.ndarray, k: int = 5) -> list[str]:
    return [hit["id"] for hit in stack.client.search(name, {"vector": row.tolist()}, k=k)[0]["hits"]]


def test_a_collection_is_built_searched_and_rolled_back(stack: Stack, name: str) -> None:
    rows = clustered(ROWS, DIM, 5)
    fill(stack, name, rows)
    first = build(stack, name)
    assert (first["type"], first["count"], first["recall"]) == ("flat", ROWS, 1.0)
    second = build(stack, name, type="hnsw", recall=0.9)
    assert (second["type"], second["up_to_seq"]) == ("hnsw", ROWS)
    assert 0.9 <= second["recall"] <= 1.0
    fill(stack, name, clustered(1, DIM, 99), first=ROWS)
    expected = [f"i{at}" for at in np.argsort(-(rows @ rows[7]), kind="stable")[:5]]
    assert nearest(stack, name, rows[7]) == expected
    listed = stack.client.snapshots(name)
    assert [(one["id"], one["current"]) for one in listed] == [(second["id"], True), (first["id"], False)]
    assert stack.client.rollback(name)["id"] == first["id"]
    assert nearest(stack, name, clustered(1, DIM, 99)[0], 1) == [f"i{ROWS}"]  # the items stay
    with pytest.raises(Conflict, match="before the current one"):
        stack.client.rollback(name)
    with pytest.raises(NotFound, match="no snapshot"):
        stack.client.rollback(name, "01a2")
    assert stack.client.rollback(name, second["id"])["current"] is True


def test_the_commands_build_list_and_go_back(stack: Stack, name: str) -> None:
    fill(stack, name, clustered(20, DIM, 5))

    def run(command: Any, *args: str) -> str:
        result = CliRunner().invoke(command, [name, *args, "--url", stack.url], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert "has no snapshot" in run(snapshots_command)
    assert "IDMap,Flat over 20 items" in run(build_command)
    run(build_command, "--type", "hnsw", "--links", "8")
    assert run(snapshots_command).count("ready") == 2
    assert "(flat, 20 items)" in run(rollback_command)


def test_what_cannot_be_built_is_refused_or_fails_with_a_reason(stack: Stack, name: str) -> None:
    job = stack.client.wait(stack.client.submit("index", {"collection": name, "operation": "build"})["id"], 120)
    assert (job["status"], job["error"]["code"]) == ("failed", "job_failed")
    assert "empty" in job["error"]["detail"]
    for wrong in (
        {"operation": "build", "items": [{"id": "a", "text": "a"}]},
        {"operation": "build", "index": {"type": "annoy"}},
        {"operation": "build", "index": {"type": "flat", "lists": 4}},
        {"operation": "delete", "ids": ["a"], "index": {"type": "flat"}},
    ):
        with pytest.raises(ValidationFailed):
            stack.client.submit("index", {"collection": name, **wrong})
    with pytest.raises(NotFound):
        stack.client.snapshots("no-such-collection")
