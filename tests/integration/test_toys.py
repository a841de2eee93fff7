"""To add a kind or an operation is a schema, a line, a handler and a test: here are one of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("toys")
    command = [sys.executable, "-m", "tests.toys", f"sqlite:///{folder}/toys.db", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_toy_kind_is_cut_run_and_shown_as_it_is_declared(answers: dict[str, Any]) -> None:
    job = answers["length"]
    assert (job["kind"], job["status"], job["counts"]["succeeded"]) == ("length", "succeeded", 3)
    assert [item["length"] for item in job["result"]["items"]] == ["1 letters", "22 letters", "333 letters"]
    assert set(job["result"]) == {"items", "total", "next_offset"}


def test_a_toy_operation_writes_a_report_of_its_own_length(answers: dict[str, Any]) -> None:
    job = answers["spell"]
    assert (job["status"], job["counts"]["total"]) == ("succeeded", 5)
    assert [item["id"] for item in job["result"]["items"]] == ["a", "b", "c", "d", "e"]


def test_a_toy_operation_refuses_what_belongs_to_another(answers: dict[str, Any]) -> None:
    assert "exact belongs to operation 'duplicates', not to 'spell'" in json.dumps(answers["other"])
