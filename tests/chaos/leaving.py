"""Workers that are asked to go, that fall asleep, and that are brought down by what they are given."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab

__all__: list[str] = []


def _gate(lab: Lab, name: str) -> tuple[str, Path]:
    """An order that is carried out until its file is there."""
    path = lab.folder / f"{name}-{lab.random.getrandbits(32):x}"
    return f"gate {path}", path


def _running(lab: Lab, job_id: str, attempt: int = 1) -> bool:
    chunk = lab.chunk(job_id)
    return bool(chunk.state == "running" and chunk.attempt == attempt)


@experiment(
    6,
    "SIGTERM in a job that ends within the grace, and in one that does not",
    short={"job_s": 0.5, "grace_s": 20.0, "too_short_s": 1.0},
)
def asked_to_go(lab: Lab, *, job_s: float = 8.0, grace_s: float = 30.0, too_short_s: float = 20.0) -> None:
    stack = lab.stack
    stack.kill("worker")
    stack.start_worker(env={"REVLN_SHUTDOWN_GRACE_S": str(grace_s)})
    job_id = lab.submit(f"sleep {job_s}")
    lab.until(lambda: _running(lab, job_id), "the start of the job")
    status = stack.kill("worker", signal.SIGTERM)
    chunk = lab.chunk(job_id)
    lab.expect(status == 0, f"the worker that could end its job exited with {status}")
    lab.expect((chunk.state, chunk.attempt) == ("succeeded", 1), f"its job is {chunk.state} at attempt {chunk.attempt}")

    stack.start_worker(env={"REVLN_SHUTDOWN_GRACE_S": str(too_short_s)})
    order, gate = _gate(lab, "long")
    job_id = lab.submit(order)
    lab.until(lambda: _running(lab, job_id), "the start of the long job")
    stack.start_worker("second")
    asked_at = time.monotonic()
    status = stack.kill("worker", signal.SIGTERM)
    left_at = time.monotonic()
    lab.within("left after", left_at - asked_at, too_short_s + 5)
    lab.expect(status == 0, f"the worker that handed its job back exited with {status}")
    lab.until(lambda: _running(lab, job_id, 2), "the second start of the long job")
    lab.within("elsewhere after", time.monotonic() - left_at, 10)
    gate.touch()
    lab.wait_for_all()
    stack.start_worker()
    stack.kill("second", signal.SIGTERM)


@experiment(7, "a worker frozen past its lease, then continued", short={"rounds": 1})
def frozen(lab: Lab, *, rounds: int = 3) -> None:
    """Once it wakes while its successor still runs, once when that one has ended."""
    for number in range(2 * rounds):
        _freeze(lab, while_it_runs=number % 2 == 0)
    lab.figures["late writes refused"] = 2 * rounds


def _freeze(lab: Lab, *, while_it_runs: bool) -> None:
    stack = lab.stack
    order, gate = _gate(lab, "frozen")
    job_id = lab.submit(order)
    lab.until(lambda: _running(lab, job_id), "the start of the job")
    first = stack.pid("worker")
    stack.freeze("worker")
    stack.start_worker("second")
    lab.until(lambda: _running(lab, job_id, 2), "the second start of the job")
    opened = [Path(f"{gate}.{pid}") for pid in (first, stack.pid("second"))]
    for one in opened if while_it_runs else opened[::-1]:
        one.touch()
        if one == opened[0]:
            stack.send("worker", signal.SIGCONT)
            told = lab.until(lambda: _told(lab, "worker", job_id), "what the sleeper came to")
            lab.expect("finished" not in told, f"the late write was not refused: {told}")
        else:
            lab.until(lambda: lab.chunk(job_id).state == "succeeded", "the end of the job")
    lab.wait_for_all()
    chunk = lab.chunk(job_id)
    lab.expect(chunk.attempt == 2, f"the job was run {chunk.attempt} times")
    stack.kill("second", signal.SIGTERM)


def _told(lab: Lab, name: str, job_id: str) -> str:
    """What a worker's log says of the end of a chunk."""
    lines = [line for line in lab.stack.log(name).splitlines() if f"chunk {job_id}.0" in line]
    return lines[-1] if lines else ""


@experiment(
    8,
    "an item that kills its process, in a batch of 8 and in a job of 8; a forward pass that hangs",
    short={"deadline_s": 3.0},
    settings={"concurrency": 12},
)
def brought_down(lab: Lab, *, batch: int = 8, deadline_s: float = 10.0) -> None:
    order, gate = _gate(lab, "first")
    lab.submit(order)  # the batch gathers behind it
    orders = ["kill", *["sleep 0.002"] * (batch - 1)]
    lab.random.shuffle(orders)
    jobs = [lab.submit(one, ends="failed" if one == "kill" else "succeeded") for one in orders]
    lab.until(lambda: all(_running(lab, one) for one in jobs), "the start of the batch")
    gate.touch()
    lab.wait_for_all()
    killer = lab.chunk(jobs[orders.index("kill")])
    lab.expect((killer.state, killer.crash_count) == ("dead", 3), f"it is {killer.state} after {killer.crash_count}")
    lab.figures["dead after"] = killer.crash_count

    job_id = lab.submit(*orders)
    lab.wait_for_all()
    counts = lab.stack.http.get(f"/v1/jobs/{job_id}").json()["counts"]
    lab.figures["of one job"] = f"{counts['succeeded']} done, {counts['failed']} dead"
    lab.expect(counts["failed"] == 1, f"one item of {batch} kills its process, {counts['failed']} failed")

    hung = lab.submit("hang", ends="expired", deadline_s=deadline_s)
    submitted_at = time.monotonic()
    lab.until(lambda: _running(lab, hung), "the start of the job that hangs")
    behind = lab.submit("sleep 0.002")
    lab.until(lambda: lab.chunk(hung).state == "expired", "the end of the job that hangs")
    lab.within("a hung job ended", time.monotonic() - submitted_at, deadline_s + 10)
    lab.until(lambda: lab.chunk(behind).state == "succeeded", "the job behind the one that hangs")
    lab.within("serving again", time.monotonic() - submitted_at, deadline_s + 30)
