"""Keys without a server: their form, and the commands that make, list, rotate and revoke them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from revln.access import ALL_SCOPES, OWNER, Caller, Scope, format_key, hash_secret, new_key_id, new_secret, parse_key
from revln.cli.main import cli
from revln.db.access.keys import find_key, keys_exist
from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.errors import Forbidden, InsufficientScope
from revln.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command on a fresh database."""
    url = f"sqlite:///{tmp_path / 'revln.db'}"
    upgrade(Settings(database_url=url))
    runner = CliRunner(env={"REVLN_DATABASE_URL": url})

    def invoke(*words: str) -> Result:
        return runner.invoke(cli, list(words))

    return invoke


def key_in(tmp_path: Path, key_id: str) -> tuple[bool, str]:
    database = Database(f"sqlite:///{tmp_path / 'revln.db'}")
    with database.read() as connection:
        found = find_key(connection, key_id)
    database.close()
    assert found is not None
    return found[0].live, found[1]


def test_a_key_is_read_as_it_was_written_and_nothing_else_is() -> None:
    key_id, secret = new_key_id(), new_secret()
    text = format_key(key_id, secret)
    assert parse_key(text) == (key_id, secret)
    assert len(secret) == 64
    assert new_secret() != secret
    for wrong in (text + "\n", text[:-1], text.replace("rvl", "RVL"), f"rvl_{secret}_{key_id}", "", "rvl__"):
        assert parse_key(wrong) is None


def test_admin_is_both_others_and_the_default_tenants_is_the_operator() -> None:
    reader = Caller("zoo", "k", frozenset({Scope.READ}), key_id="k")
    reader.demand(Scope.READ)
    for scope in (Scope.SUBMIT, Scope.ADMIN):
        with pytest.raises(InsufficientScope, match=f"scope {scope}"):
            reader.demand(scope)
    admin = Caller("zoo", "k", frozenset({Scope.ADMIN}), key_id="k")
    assert all(admin.may(scope) for scope in ALL_SCOPES)
    with pytest.raises(Forbidden, match="default"):
        admin.demand_operator()
    OWNER.demand_operator()


def test_a_key_is_made_listed_rotated_and_revoked(run: Run, tmp_path: Path) -> None:
    made = run("keys", "create", "--name", "ingest", "--tenant", "zoo", "--scope", "submit", "--expires", "90d")
    assert made.exit_code == 0, made.output
    parsed = parse_key(made.stdout.strip())
    assert parsed is not None, "the key alone is on standard output"
    key_id, secret = parsed
    assert key_in(tmp_path, key_id) == (True, hash_secret(secret))
    listed = run("keys", "list").output
    assert f"{key_id}  zoo  ingest  submit  expires 20" in listed
    assert secret not in listed
    new = json.loads(run("keys", "rotate", key_id, "--overlap", "0s", "--json").stdout)
    assert (new["tenant"], new["scopes"], new["live"]) == ("zoo", ["submit"], True)
    assert not key_in(tmp_path, key_id)[0]
    assert run("keys", "revoke", new["id"]).exit_code == 0
    assert [key["live"] for key in json.loads(run("keys", "list", "--json").stdout)] == [False, False]
    told = json.loads(run("audit", "--json").stdout)
    assert [one["action"] for one in told] == ["key.revoke", "key.rotate", "key.create"]
    assert all(one["who"].startswith("cli:") and one["tenant"] == "zoo" for one in told)
    assert json.loads(run("audit", "--tenant", "default", "--json").stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create"),
        ("keys", "create", "--name", "n", "--tenant", "Zoo!"),
        ("keys", "create", "--name", "n", "--scope", "root"),
        ("keys", "create", "--name", "n", "--expires", "tomorrow"),
        ("keys", "rotate", "x", "--overlap", "-1d"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


def test_a_key_that_is_not_there_cannot_be_revoked(run: Run) -> None:
    assert "There is no key 'abc'" in str(run("keys", "revoke", "abc").exception)


def test_a_database_that_was_never_migrated_has_no_keys(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    assert not keys_exist(database)
    upgrade(Settings(database_url=f"sqlite:///{tmp_path / 'new.db'}"))
    assert not keys_exist(database)
    database.close()
