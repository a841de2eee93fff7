"""Tenants that share one house: the flood of one is no matter of another."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from sqlalchemy import func, select

from revln.db import tables
from tests.chaos.experiment import experiment
from tests.chaos.lab import OPEN, Lab
from tests.tenants import BOOTSTRAP, client_of, make_key

__all__: list[str] = []

_CLIENTS = 4  # of the one who floods
_SLOWER = 3.0  # than alone


@experiment(
    17,
    "one tenant floods, another hands in ten",
    # What runs already is not interrupted: with the default's eight threads it would be as long as the ten.
    settings={"api_key": BOOTSTRAP, "concurrency": 4},
)
def flood(lab: Lab, *, jobs: int = 5000, quota: int = 1000, few: int = 10, rounds: int = 5, job_s: float = 0.1) -> None:
    """``quota``: of A's items that wait; B's ten are handed in ``rounds`` times, alone and beside the flood."""
    keys = [make_key(lab.stack, "a", "submit", max_queued_items=quota), make_key(lab.stack, "b", "submit")]
    with client_of(lab.stack, keys[0]["key"]) as a, client_of(lab.stack, keys[1]["key"]) as b:
        alone = _waits(lab, b, few, rounds, job_s)
        with ThreadPoolExecutor(_CLIENTS) as pool:
            started = [pool.submit(_hand_in, lab, a, job_s) for _ in range(jobs)]
            lab.until(lambda: lab.open() >= quota // 2, "the flood")
            beside = _waits(lab, b, few, rounds, job_s)
            answers = Counter(one.result() for one in started)
    lab.figures |= {"alone": f"{_p95(alone):.2f} s", "beside the flood": f"{_p95(beside):.2f} s"}
    lab.figures |= {"times": f"{_p95(beside) / _p95(alone):.2f}", "answers to the flood": dict(sorted(answers.items()))}
    lab.expect(answers.keys() == {202, 429}, f"the flood was answered {dict(answers)}")
    lab.expect(
        not lab.timed or _p95(beside) < _SLOWER * _p95(alone),
        f"ten jobs took {_p95(beside):.2f} s beside the flood (p95), {_p95(alone):.2f} s alone",
    )
    between = _between(lab, few)[-rounds:]  # what a slow machine cannot change
    lab.figures["of the flood meanwhile"] = max(between)
    lab.expect(max(between) <= 2 * few, f"{between} chunks of the flood went before the last of the ten")
    lab.wait_for_all()


def _hand_in(lab: Lab, http: httpx.Client, job_s: float) -> int:
    body = {"kind": "embed", "input": {"items": [{"text": lab.text(f"sleep {job_s}")}]}}
    answer = http.post("/v1/jobs", json=body)
    if answer.status_code == 202:
        lab.accepted[str(answer.json()["id"])] = "succeeded"
    elif answer.status_code == 429:
        lab.expect(int(answer.headers.get("Retry-After", 0)) > 0, "a 429 without a Retry-After")
    return answer.status_code


def _waits(lab: Lab, http: httpx.Client, few: int, rounds: int, job_s: float) -> list[float]:
    """Seconds from the acceptance of each job to its end, by the database's clock."""
    jobs = tables.jobs.c
    for _ in range(rounds):
        with ThreadPoolExecutor(few) as pool:
            statuses = set(pool.map(lambda _: _hand_in(lab, http, job_s), range(few)))
        lab.expect(statuses == {202}, f"ten jobs of a tenant that has no others were answered {statuses}")

        def all_done() -> bool:
            with lab.db.read() as connection:
                left = select(func.count()).select_from(tables.jobs).where(jobs.tenant == "b", OPEN)
                return connection.scalar(left) == 0

        lab.until(all_done, "the end of the ten")
    with lab.db.read() as connection:
        newest = select(jobs.finished_at - jobs.created_at).where(jobs.tenant == "b").order_by(jobs.created_at.desc())
        return list(connection.scalars(newest.limit(few * rounds)))


def _between(lab: Lab, few: int) -> list[int]:
    """For each time that B handed in its ten: how many of A's chunks were claimed until the last of them was."""
    jobs, chunks = tables.jobs.c, tables.chunks.c
    claims = select(jobs.tenant, jobs.created_at, chunks.started_at).join(tables.chunks, jobs.id == chunks.job_id)
    with lab.db.read() as connection:
        found = connection.execute(claims.where(chunks.started_at.is_not(None)).order_by(jobs.created_at)).all()
    of_b = [row for row in found if row.tenant == "b"]
    spans = [of_b[at : at + few] for at in range(0, len(of_b), few)]
    of_a = [row.started_at for row in found if row.tenant == "a"]
    return [sum(span[-1].created_at < at < max(row.started_at for row in span) for at in of_a) for span in spans]


def _p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.95)]
