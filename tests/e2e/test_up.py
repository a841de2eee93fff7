"""`revln up` as a newcomer uses it: real processes, the shipped model, and kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from revln.client import RevlnClient
from tests.stack import wait_until

START_S = 120.0
STOP_S = 60.0
PARTS = {"api", "worker", "flower"}

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("REVLN_")}


def revln(*arguments: str, timeout_s: float = STOP_S) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "revln.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Up:
    """One `revln up` on a folder; started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.log = folder / "up.log"
        self.process: subprocess.Popen[str] | None = None
        self.url = self.flower_url = ""
        self.client: RevlnClient

    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "revln.cli.main", "up", "--data-dir", str(self.data_dir)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--api-port", "0", "--flower-port", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
            )
        return self.process

    def start(self) -> None:
        """Return once it has said `ready:`."""
        if self.process is not None:
            return
        self.process = self.spawn()
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        said: dict[str, str] = {}
        while "ready" not in said:
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            name, _, url = line.strip().partition(": ")
            said[name] = url
        watchdog.cancel()
        self.url, self.flower_url = said["ready"], said["flower"]
        self.client = RevlnClient(self.url)

    def family(self) -> dict[str, psutil.Process]:
        """The parts by name."""
        assert self.process is not None
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                words = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):  # died under our eyes
                continue
            found[next((word for word in words if word in PARTS), "redis")] = process
        return found

    def end(self, signum: int) -> int:
        """Send a signal, and check that with `revln up` every part has gone."""
        assert self.process is not None
        family = self.family()
        self.client.close()
        self.process.send_signal(signum)
        code = self.process.wait(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process, self.url = None, ""
        wait_until(lambda: not any(alive(each) for each in family.values()), 5, "the end of every part")
        return code


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    yield up
    if up.process is not None:
        up.end(signal.SIGKILL)


@pytest.fixture
def up(running: Up) -> Up:
    running.start()
    return running


def embed(client: RevlnClient, text: str) -> str:
    job = client.submit("embed", {"items": [{"text": text}]})
    return str(client.wait(job["id"], 60)["status"])


def test_ready_means_that_every_part_has_answered(up: Up) -> None:
    with httpx.Client(trust_env=False) as http:
        assert http.get(f"{up.url}/readyz").status_code == 200
        page = http.get(f"{up.flower_url}/")
        assert page.status_code == 200
        assert "Flower" in page.text
    assert set(up.family()) == PARTS | {"redis"}
    assert list(up.client.jobs()) == [], "the job that proved it is gone"


def test_the_command_line_is_a_client_of_it(up: Up, tmp_path: Path) -> None:
    done = revln("embed", '{"items": [{"text": "a dog"}, {"text": "a cat"}]}', "--url", up.url)
    assert done.returncode == 0, done.stderr
    assert [len(item["embedding"]) for item in json.loads(done.stdout)["items"]] == [json.loads(done.stdout)["dim"]] * 2
    listed = revln("jobs", "--url", up.url)
    assert "succeeded" in listed.stdout
    late = revln("embed", '{"items": [{"text": "a dog"}]}', "--deadline", "60", "--no-wait", "--json", "--url", up.url)
    job = json.loads(late.stdout)
    assert job["deadline_at"] > job["created_at"]
    assert revln("job", job["id"], "--wait", "60", "--url", up.url).returncode == 0
    picture = tmp_path / "dog.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    (sha256,) = revln("upload", str(picture), "--url", up.url).stdout.split()[:1]
    gone = revln("delete", sha256, job["id"], "0" * 64, "--url", up.url)
    assert gone.returncode == 1
    assert [line.partition(":")[0] for line in gone.stderr.splitlines()] == ["0" * 64]
    refused = revln("search", '{"collection": "nowhere", "queries": []}', "--url", up.url)
    assert refused.returncode == 1
    assert "/input/" in refused.stderr


def test_a_second_up_on_the_folder_is_one_clear_line(up: Up) -> None:
    assert up.process is not None
    second = revln("up", "--data-dir", str(up.data_dir), "--api-port", "0", "--flower-port", "0")
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"process {up.process.pid}" in second.stderr


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, other in (("--api-port", "--flower-port"), ("--flower-port", "--api-port")):
            ended = revln("up", "--data-dir", str(tmp_path / "data"), flag, str(port), other, "0")
            assert ended.returncode == 1
            assert ended.stderr.count("\n") == 1
            assert f"Port {port} on 127.0.0.1 cannot be used" in ended.stderr
            assert f"{flag} 0 takes a free one" in ended.stderr


def test_it_is_not_opened_to_other_machines_without_a_key(tmp_path: Path) -> None:
    ended = revln("up", "--data-dir", str(tmp_path / "data"), "--host", "0.0.0.0")
    assert ended.returncode == 1
    assert "set REVLN_API_KEY" in ended.stderr


def test_parts_that_are_killed_come_back_and_jobs_go_on(up: Up) -> None:
    before = up.family()
    for name in ("redis", "worker", "flower", "api"):
        before[name].kill()
    wait_until(lambda: up.family().keys() == before.keys() and not any(alive(each) for each in before.values()))
    assert embed(up.client, "a dog runs on the beach") == "succeeded"
    assert "worker died (SIGKILL); it starts again in" in up.log.read_text()


def test_kill_9_leaves_nothing_running_and_the_queued_job_is_done_after_the_next_start(up: Up) -> None:
    up.family()["worker"].suspend()
    queued = up.client.submit("embed", {"items": [{"text": f"text {n}"} for n in range(100)]})
    assert queued["status"] == "queued"
    assert up.end(signal.SIGKILL) == -signal.SIGKILL  # nothing is left, the suspended worker included
    up.start()
    done = up.client.wait(queued["id"], 60)
    assert (done["status"], done["counts"]["succeeded"]) == ("succeeded", 100)
    assert up.end(signal.SIGTERM) == 0
    log = up.log.read_text()
    stops = [log.rindex(f"stopping {name}") for name in ("api", "worker", "flower", "redis")]
    assert stops == sorted(stops)


def test_a_signal_while_it_starts_stops_what_has_started(tmp_path: Path) -> None:
    up = Up(tmp_path)
    process = up.spawn()
    wait_until(lambda: "redis answers" in up.log.read_text(), START_S, "Redis")
    family = up.family()
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_S) == 0
    assert family
    assert not any(alive(each) for each in family.values())
    assert process.stdout is not None
    assert process.stdout.read() == ""
    process.stdout.close()
