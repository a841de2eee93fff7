"""The `revln` command: quick help, one clear line for an error, and a command for every kind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
from click.testing import CliRunner
from flower import command, urls
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.options import options
from tornado.web import ErrorHandler

from revln.broker import make_celery
from revln.cli.flower import flower_arguments, refuse_strange_hosts
from revln.cli.main import COMMANDS, cli, main
from revln.cli.parts import _check_worker
from revln.cli.up import _embedder
from revln.cli.wording import in_commands
from revln.db import workers
from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.errors import SettingsError
from revln.exposure import require_flower_login
from revln.jobs.kinds import KINDS
from revln.settings import Settings

HEAVY = ("torch", "transformers", "faiss", "numpy", "PIL", "sqlalchemy", "celery", "uvicorn", "httpx", "rich")


def run(
    *arguments: str, env: dict[str, str] | None = None, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REVLN_")}
    command = [sys.executable, "-m", "revln.cli.main", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=clean | (env or {}), input=given, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom revln.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        f"    print('imported', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "imported []" in done.stdout
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) > 5
    assert "``" not in done.output


def test_every_kind_has_a_command_that_names_its_fields() -> None:
    for name, kind in KINDS.items():
        done = CliRunner().invoke(cli, [name, "--help"])
        assert all(f"  {field}" in done.output for field in kind.input.model_fields)


def test_an_unknown_command_is_wrong_usage() -> None:
    done = run("emebd")
    assert done.returncode == 2
    assert "No such command 'emebd'" in done.stderr


def test_an_unknown_command_of_index_is_not_taken_for_json() -> None:
    done = CliRunner().invoke(cli, ["index", "rebuild", "photos"])
    assert done.exit_code == 2
    assert "No such command 'rebuild'" in done.output


def test_a_wrong_setting_is_one_clear_line() -> None:
    done = run("jobs", env={"REVLN_API_PROT": "1"})
    assert done.returncode == 1
    assert done.stderr == "revln: REVLN_API_PROT is not a setting of revln. Did you mean REVLN_API_PORT?\n"


def test_a_server_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revln.client_transport.FIRST_PAUSE_S", 60.0)
    with pytest.raises(SystemExit) as ended:
        main(["models", "--url", "http://127.0.0.1:1"])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("request_of_the_api", "command"),
    [
        ("PUT /v1/collections/photos makes one.", "`revln collection photos` makes one."),
        (
            "there is no manifest 9f2c; POST /v1/manifests uploads one",
            "there is no manifest 9f2c; `revln upload` uploads one",
        ),
        ("(DELETE /v1/collections/a.b/generations/former).", "(`revln index generations a.b --delete former`)."),
        ("POST /v1/webhooks/enable it first.", "`revln webhooks enable` it first."),
    ],
)
def test_an_error_of_the_api_names_the_command_in_place_of_the_request(request_of_the_api: str, command: str) -> None:
    assert in_commands(request_of_the_api) == command


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{not json", "INPUT is not JSON"),
        ("[1]", "must be a JSON object"),
        ("@/nowhere/at/all.json", "cannot read /nowhere/at/all.json"),
    ],
)
def test_input_that_cannot_be_read_is_wrong_usage(given: str, says: str) -> None:
    done = CliRunner().invoke(cli, ["embed", given])
    assert done.exit_code == 2
    assert says in done.output


def test_input_from_standard_input_that_is_not_json_says_where_it_came_from() -> None:
    done = run("embed", "-", given="nonsense")
    assert done.returncode == 2
    assert "standard input is not JSON" in done.stderr


def test_flower_is_read_only_keeps_its_state_and_takes_its_password(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, flower_host="0.0.0.0", flower_port=5, flower_basic_auth="me:longer-than-15-signs"
    )
    arguments = flower_arguments(settings)
    assert {
        "--read_only=True",
        "--persistent=True",
        "--port=5",
        "--basic_auth=me:longer-than-15-signs",
        "--max_tasks=10000",
    } <= set(arguments)
    require_flower_login(settings)


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("127.0.0.1:5555", True), ("localhost", True), ("[::1]:5555", True), ("flower.example.org", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("", False), ("[", False),
    ],
)  # fmt: skip
def test_an_open_flower_answers_to_names_of_this_machine_alone(
    host: str, answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Flower", command.Flower)
    settings = Settings(data_dir=tmp_path, flower_url="https://flower.example.org/x")
    refuse_strange_hosts(settings)
    with make_celery(settings) as celery:
        app = command.Flower(capp=celery, options=options, **urls.settings)
        start = RequestStartLine("GET", "/healthcheck", "HTTP/1.1")
        request = HTTPServerRequest(start_line=start, headers=HTTPHeaders({"Host": host}), connection=Mock())
        handler = app.find_handler(request).handler_class
        assert (handler is not ErrorHandler) == answers


def test_flower_known_by_its_options() -> None:
    """Flower passes over what it does not know, so a renamed option would be lost in silence."""
    code = (
        "import sys, json\nfrom flower.options import default_options\n"
        "from pathlib import Path\nfrom revln.settings import Settings\nfrom revln.cli.flower import flower_arguments\n"
        "wanted = flower_arguments(Settings(flower_basic_auth='a:b'))[1:]\n"
        "print(json.dumps([a for a in wanted if a.lstrip('-').partition('=')[0] not in default_options]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("host", "login", "refused"),
    [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("::1", "", False),
        ("0.0.0.0", "", True),
        ("192.0.2.7", "", True),
        ("flower.example.org", "", True),
        ("0.0.0.0", "user:password", True),
        ("0.0.0.0", "user:aaaaaaaaaaaaaaaaaaaa", True),
        ("0.0.0.0", "user:not-soon-guessed-by-anybody", False),
        ("127.0.0.1", "user:password", False),
        ("127.0.0.1", "user:pass,word", True),
        ("127.0.0.1", "password", True),
    ],
)
def test_flower_needs_a_password_wherever_others_could_reach_it(host: str, login: str, refused: bool) -> None:
    settings = Settings(flower_host=host, flower_basic_auth=login)
    if not refused:
        require_flower_login(settings)
        return
    with pytest.raises(SettingsError, match="REVLN_FLOWER_BASIC_AUTH"):
        require_flower_login(settings)


def test_the_worker_check_fails_where_no_worker_lives_or_one_is_deaf(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings)
    with pytest.MonkeyPatch.context() as patch, closing(Database(settings.resolved_database_url)) as db:
        said: list[str] = []
        patch.setattr("revln.cli.parts.click.echo", lambda text, err: said.append(text))
        assert _check_worker(settings) == 1
        here = workers.WorkerRow("mine", socket.gethostname(), os.getpid(), [], "cpu", [])
        workers.register(db, here)
        assert _check_worker(settings) == 0
        workers.beat(db, "mine", [], silent_s=99, busy=False)
        assert _check_worker(settings) == 1
        workers.beat(db, "mine", [], silent_s=3, busy=False)
        workers.register(db, replace(here, id="dead", pid=2**22 + 1))
        workers.beat(db, "dead", [], silent_s=99, busy=False)
        assert _check_worker(settings) == 0
    assert "no worker of" in said[0]
    assert "it is deaf" in said[2]
    assert (said[1], said[3]) == ("mine: well", "mine: well")


def test_every_command_stands_in_the_manual() -> None:
    manual = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    assert not [name for name in COMMANDS if f"revln {name}" not in manual]


@pytest.mark.parametrize(
    ("default", "chosen"),
    [
        ({"operations": ["embed_text"]}, "mine"),
        ({"operations": ["caption"]}, "revln-tiny"),
        ({"error": {"detail": "its files are missing"}}, "mine"),  # the refusal says why nothing starts
    ],
)
def test_the_first_job_is_one_that_the_models_can_do(default: dict[str, object], chosen: str) -> None:
    tiny = {"name": "revln-tiny", "default": False, "operations": ["embed_text", "caption"]}
    assert _embedder([tiny, {"name": "mine", "default": True, **default}]) == chosen


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", "batch=1 patience=0 epochs=-1 caption-epochs=-1 text-epochs=-1 threads=-1"),
        ("train", "language-epochs=-1 train-size=31 learning-rate=0 hardest=-1 captioning=-1 save-every-s=-1 seed=-1"),
        ("train", "time-limit-s=0 least-area=0 teaching=2 colour=2 word-dropout=1 freeze=24 views=0 held-out=0"),
        ("eval", "num-beams=0 examples=-1 limit=0"),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(tmp_path: Path, command: str, options: str) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "train" else []
    for option in options.split():
        done = CliRunner().invoke(cli, [command, *out, f"--{option}"])
        assert done.exit_code == 2, option
        assert f"'--{option.partition('=')[0]}'" in done.output
        assert "is not in the range" in done.output
    assert not (tmp_path / "out").exists()
