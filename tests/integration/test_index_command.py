"""`revln index …` and `revln collection`: what they print, and how they end."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from revln.cli.main import cli
from tests.inline import InlineStack


@pytest.fixture
def name(inline: InlineStack, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REVLN_PUBLIC_URL", inline.url)
    monkeypatch.setenv("COLUMNS", "80")
    return f"commands-{uuid4().hex[:10]}"


def run(*arguments: str, exits: int = 0, **options: Any) -> str:
    done = CliRunner().invoke(cli, arguments, standalone_mode=False, **options)
    assert (done.return_value or 0) == exits, done.output
    return done.output


def filled(name: str) -> None:
    lines = "".join(f'{{"id": "{n}", "vector": [1, {n}], "metadata": {{"n": {n}}}}}\n' for n in range(6))
    run("collection", name, "--dim", "2")
    run("index", "upsert", name, "-", input=lines)


def test_a_collection_of_own_vectors_is_made_and_shown_as_such(name: str) -> None:
    assert "0 items  your own vectors  2 dimensions" in run("collection", name, "--dim", "2")
    assert "your own vectors" in run("index", "generations", name)
    assert "None" not in run("collections")


def test_a_delete_by_filter_says_how_many(name: str) -> None:
    filled(name)
    assert run("index", "delete", name, "--filter", '{"n": {"gte": 4}}') == f"{name}: 2 items deleted\n"
    assert "queued" in run("index", "delete", name, "0", "--no-wait")


def test_a_listed_snapshot_can_be_gone_back_to_by_the_id_that_is_shown(name: str) -> None:
    filled(name)
    run("index", "build", name, "--priority", "bulk", "--timeout", "60")
    run("index", "build", name)
    first = run("index", "snapshots", name).splitlines()[-1].split()[0]
    assert first in run("index", "rollback", name, "--to", first)


def test_what_failed_of_a_job_given_as_json_is_told_item_by_item(name: str) -> None:
    filled(name)
    asked = f'{{"collection": "{name}", "items": [{{"id": "short", "vector": [1]}}]}}'
    assert "short: The vector has 1 dimensions" in run("index", asked, exits=1)
    asked = f'{{"collection": "{name}", "queries": [{{"id": "nobody"}}]}}'
    assert "0: Collection" in run("search", asked, exits=1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("search", "--id", "1", "--min-score", "auto"), "A collection of your own vectors has no calibrated score"),
        (("index", "migrate", "--model", "revln-tiny"), "which no model can make again"),
    ],
)
def test_what_own_vectors_cannot_do_is_told(name: str, asked: tuple[str, ...], says: str) -> None:
    filled(name)
    kind, *rest = asked
    arguments = [kind, rest[0], name, *rest[1:]] if kind == "index" else [kind, name, *rest]
    assert says in str(CliRunner().invoke(cli, arguments, standalone_mode=False).exception)
