"""`revln search NAME …`: what the options mean, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from revln.cli.main import cli
from tests.inline import InlineStack
from tests.integration.test_search_over_http import own, ring


@pytest.fixture
def name(inline: InlineStack, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REVLN_PUBLIC_URL", inline.url)
    return own(inline, *ring(6), {"id": "up", "vector": [0, 0, 1, 0]}, {"id": "up^2", "vector": [0, 0, 0.9, 0.1]})


def search(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["search", *arguments], standalone_mode=False)


def found(*arguments: str) -> list[list[str]]:
    done = search(*arguments, "--json")
    assert done.return_value == 0, done.output
    return [[hit["id"] for hit in one["hits"]] for one in json.loads(done.output)["results"]]


def test_items_and_vectors_are_queries_or_together_one(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([1, 0, 0, 0], dtype=np.float32))
    np.save(tmp_path / "two.npy", np.eye(4)[[0, 2]])
    one, two = str(tmp_path / "one.npy"), str(tmp_path / "two.npy")
    assert found(name, "--vector", one, "-k", "2") == [["i0", "i1"]]
    assert found(name, "--id", "i5", "--vector", two, "-k", "1") == [["i5"], ["i0"], ["up"]]
    assert found(name, "--id", "up^2", "-k", "1") == [["up^2"]]  # a weight has a meaning only where parts are added
    together = ("--combine", "--vector", one, "--id")
    assert found(name, *together, "up^5", "-k", "1") == [["up"]]
    assert found(name, *together, "up^-5", "-k", "8")[0][-1] == "up"
    assert found(name, "--combine", "--id", "i1", "--id", "i3", "--exclude-self", "-k", "1") == [["i2"]]


def test_pages_filters_thresholds_and_duplicates(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.eye(4)[0])
    ask = (name, "--vector", str(tmp_path / "one.npy"), "-k", "2")
    assert found(*ask, "--page", "2") == found(*ask, "--offset", "2") == [["i2", "i3"]]
    assert found(*ask, "--filter", '{"n": {"gte": 4}}') == [["i4", "i5"]]
    assert found(*ask, "--min-score", "0.99") == [["i0"]]
    assert found(*ask, "--dedup", "0.9") == [["i0", "i3"]]
    assert found(*ask, "--dedup") == [["i0", "i2"]]
    shown = search(*ask, "--dedup", "--filter", '{"even": true}')
    assert "+1.0000  i0  item 0" in shown.output
    for wrong, says in [
        (("--page", "2", "--offset", "1"), "either --offset or --page"),
        (("--min-score", "most"), "neither a number nor 'auto'"),
        (("--filter", "{"), "not JSON"),
    ]:
        refused = CliRunner().invoke(cli, ["search", *ask, *wrong])
        assert (refused.exit_code, says in refused.output) == (2, True), refused.output
    assert CliRunner().invoke(cli, ["search", name]).exit_code == 2
    (tmp_path / "bad.npy").write_bytes(b"no array")
    assert "cannot read" in CliRunner().invoke(cli, ["search", name, "--vector", str(tmp_path / "bad.npy")]).output


def test_json_is_taken_as_before_and_an_unanswered_query_is_shown(name: str) -> None:
    asked: dict[str, Any] = {"collection": name, "queries": [{"id": "i5"}], "k": 1}
    done = search(json.dumps(asked))
    assert (done.return_value, json.loads(done.output)["results"][0]["hits"][0]["id"]) == (0, "i5")
    mixed = search(name, "--id", "never", "--id", "i0", "-k", "1")
    assert mixed.return_value == 1
    assert "item_not_found" in mixed.output
    assert "+1.0000  i0" in mixed.output
