"""What strangers send: pictures and URLs that mean harm, bodies without end, ids of others, whatever fits a schema."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab
from tests.hostile_pictures import Hostile, corpus, heavy
from tests.hostile_urls import BY_TEXT, at_port
from tests.memory import COUNTED, begin_peak, peak_mb

__all__: list[str] = []

_TOGETHER = 8
_GROWTH_MB = 500
_PARTS = ("api", "worker")
_MAY = {"error": {"invalid_image"}, "either": {"invalid_image", "read"}}  # what else is wanted is its size
_AWAITED = {"Content-Type": "application/json", "Prefer": "wait=60"}
_ROOT = Path(__file__).parents[2]


@experiment(
    14,
    "malformed pictures, URLs that lead inside, a body without a length",
    short={"pictures": 100, "large": 0},
    settings={"fetch_urls": True, "max_body_bytes": 30 * 2**20},  # the large ones are just over 25 MB
)
def hostile_input(lab: Lab, *, pictures: int = 200, large: int = 9, urls: int = 60, body_mb: int = 100) -> None:
    """``large``: of pictures of 25 MB, beside the others."""
    pids = {part: lab.stack.pid(part) for part in _PARTS}
    before = {part: begin_peak(pid) if COUNTED else 0.0 for part, pid in pids.items()}
    malformed = [one for one in corpus() if one.wanted in _MAY]
    chosen = lab.random.sample(malformed, min(pictures, len(malformed)))
    _upload(lab, [*chosen, *list(heavy())[:large]])
    _embed(lab, chosen)
    _fetch(lab, lab.random.sample(BY_TEXT, min(urls, len(BY_TEXT))))
    for path in ("/v1/jobs", "/v1/images"):
        answer = lab.stack.http.post(path, content=(bytes(2**20) for _ in range(body_mb)))
        lab.expect(answer.status_code == 413, f"{body_mb} MB in chunks to {path} were answered {answer.status_code}")
    lab.wait_for_all()
    for part, pid in pids.items() if COUNTED else ():
        grown = peak_mb(pid) - before[part]
        lab.figures[f"{part} grew"] = f"{grown:.0f} MB"
        lab.expect(grown < _GROWTH_MB, f"{part} grew by {grown:.0f} MB, at most {_GROWTH_MB}")
    alive = {part: lab.stack.pid(part) for part in _PARTS if not lab.stack.ended(part)}
    lab.expect(alive == pids, f"of {pids} there are left {alive}")


def _upload(lab: Lab, pictures: list[Hostile]) -> None:
    def code(one: Hostile) -> str:
        answer = lab.stack.http.post("/v1/images", content=one.data)
        said = "read" if answer.status_code in (200, 201) else str(answer.json()["code"])
        lab.expect(said in _MAY.get(one.wanted, {"read"}), f"{one.name} was answered {answer.status_code} {said}")
        return said

    with ThreadPoolExecutor(_TOGETHER) as pool:
        lab.figures["uploads"] = dict(Counter(pool.map(code, pictures)))


def _embed(lab: Lab, pictures: list[Hostile]) -> None:
    """The same inside a job, where a worker reads them."""
    items = [{"image": {"base64": base64.b64encode(one.data).decode()}} for one in pictures]
    came = [error or "read" for error in _errors(lab, items)]
    for one, said in zip(pictures, came, strict=True):
        lab.expect(said in _MAY[one.wanted], f"{one.name} as an item came to {said}")
    lab.figures["items"] = dict(Counter(came))


def _fetch(lab: Lab, urls: list[str]) -> None:
    """Refused by a worker as items, or by the API where they are no text at all; and nobody comes to the canary."""
    with _canary() as (port, visits), ThreadPoolExecutor(_TOGETHER) as pool:
        items = [{"image": {"url": at_port(url, port)}} for url in urls]
        codes = [code for (code,) in pool.map(lambda item: _errors(lab, [item]), items)]
        came = visits()
    for url, code in zip(urls, codes, strict=True):
        lab.expect(code in ("fetch_refused", "validation_failed"), f"{url!r} came to {code}")
    lab.expect(came == 0, f"{came} connections were made")
    lab.figures |= {"URLs": dict(Counter(codes)), "connections": came, "canary's port": port}


def _errors(lab: Lab, items: list[dict[str, Any]]) -> list[str | None]:
    """The code of each item's error, or the one with which all of them were refused."""
    body = {"kind": "embed", "input": {"items": items}}
    answer = lab.stack.http.post("/v1/jobs", content=json.dumps(body), headers=_AWAITED)
    job = answer.json()
    if answer.status_code == 422:
        return [job["code"]] * len(items)
    assert answer.status_code == 200, f"a job of {len(items)} items was answered {answer.status_code}: {answer.text}"
    lab.accepted[job["id"]] = job["status"]
    found = lab.stack.http.get(f"/v1/jobs/{job['id']}/result", params={"limit": len(items)}).json()["items"]
    return [item.get("error", {}).get("code") for item in found]


@contextmanager
def _canary() -> Iterator[tuple[int, Callable[[], int]]]:
    """A socket that answers nobody: its port, and how many have come.

    Port 80 where it can be had, so that an address is refused for itself and not for its port.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", 80))
        except OSError:
            listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        listening.setblocking(False)

        def visits() -> int:
            came = 0
            with suppress(BlockingIOError):
                while True:
                    listening.accept()[0].close()
                    came += 1
            return came

        socket.create_connection(listening.getsockname()).close()
        assert visits() == 1, "a canary that sees nobody proves nothing"
        yield listening.getsockname()[1], visits


@experiment(15, "whatever fits the API's schema, and what does not (schemathesis)", stack=False)
def any_request(lab: Lab, *, examples: int = 20) -> None:
    """``examples``: of each operation; of a new seed each time."""
    _run_tests(lab, "tests/integration/test_schemathesis.py", SCHEMATHESIS_EXAMPLES=str(examples))


@experiment(16, "a tenant tries each id of another's on each route", stack=False)
def anothers_ids(lab: Lab) -> None:
    _run_tests(lab, "tests/integration/test_tenants.py")


def _run_tests(lab: Lab, path: str, **env: str) -> None:
    """What is a test already is run as one, on this database alone."""
    database = make_url(lab.database_url).get_backend_name()
    command = [sys.executable, "-m", "pytest", "-q", "-k", database, "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=_ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    told = done.stdout.strip().splitlines()
    lab.figures["tests"] = told[-1].strip("= ") if told else "none"
    lab.expect(done.returncode == 0, f"{path}: {done.stdout[-1_000:]} {done.stderr[-500:]}")
