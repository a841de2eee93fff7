"""What was accepted is there, once: whoever dies between the commit and the answer, however often it was sent."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx

from revln.broker import make_celery, task_id, task_name
from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab
from tests.stack import DEADLINE_S

__all__: list[str] = []


@experiment(11, "the API killed between commit and publish", short={"times": 5})
def killed_before_publishing(lab: Lab, *, times: int = 100) -> None:
    stack = lab.stack
    stack.kill("api")
    for number in range(times):
        stack.start_api("die at publish")
        body = {
            "kind": "embed",
            "input": {"items": [{"text": lab.text("sleep 0.002")}]},
            "metadata": {"tag": "cut off"},
        }
        try:
            answer = stack.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"cut-off-{number}"})
            lab.expect(False, f"the API was to die and answered {answer.status_code}")
        except httpx.TransportError:
            pass
        stack.wait_end("api")
    stack.start_api()
    for job in stack.client.jobs(tag="cut off", limit=times + 1):
        lab.accepted[job["id"]] = "succeeded"
    lab.expect(
        len(lab.accepted) == times,
        f"{times} submissions were cut off after their commit, {len(lab.accepted)} are there",
    )
    lab.wait_for_all()
    lab.figures["cut off"] = times


@experiment(
    12, "one idempotency key from many threads; one message many times", short={"threads": 50, "deliveries": 10}
)
def said_often(lab: Lab, *, threads: int = 50, deliveries: int = 10) -> None:
    stack = lab.stack
    stack.kill("worker")  # so that the job stays as it is, and equal answers may be asked for
    body = {"kind": "embed", "input": {"items": [{"text": lab.text()}]}}

    key = {"Idempotency-Key": lab.text("key")}
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(lambda _: stack.http.post("/v1/jobs", json=body, headers=key), range(threads)))
    statuses = {answer.status_code for answer in answers}
    lab.expect(statuses == {202}, f"the answers were {statuses}")
    different = {json.dumps(answer.json(), sort_keys=True) for answer in answers}
    lab.expect(len(different) == 1, f"{len(different)} different answers")
    job_id = str(answers[0].json()["id"])
    lab.accepted[job_id] = "succeeded"

    app = make_celery(stack.settings, publisher=True)
    for _ in range(deliveries):
        app.send_task(
            task_name("embed"), args=[job_id, 0], task_id=task_id(job_id, 0), queue="embed.normal", retry=False
        )
    app.close()
    stack.start_worker()
    lab.wait_for_all()
    lab.until(lambda: not stack.redis.llen("embed.normal"), "the last message", DEADLINE_S)
    chunk = lab.chunk(job_id)
    lab.expect(chunk.attempt == 1, f"delivered {deliveries} times, run {chunk.attempt} times")
    lab.figures |= {"threads": threads, "jobs": 1, "deliveries": deliveries, "runs": chunk.attempt}
