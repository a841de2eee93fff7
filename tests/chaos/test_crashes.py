"""Jobs that are stopped while they run, by their owner or by their deadline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.lab import Lab

pytestmark = pytest.mark.slow

_CHUNK = 64  # items of an embed job


def test_a_running_job_stops_soon_after_it_is_canceled_and_keeps_what_was_done(lab: Lab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = lab.submit(*["sleep 0"] * _CHUNK, f"wait {gate}")
    http = lab.stack.http
    lab.until(lambda: http.get(f"/v1/jobs/{job_id}").json()["counts"]["succeeded"], "the first results")
    http.post(f"/v1/jobs/{job_id}/cancel")
    lab.wait_for_all()
    done = http.get(f"/v1/jobs/{job_id}").json()
    assert (done["status"], done["counts"]["succeeded"]) == ("canceled", _CHUNK)
    assert len(http.get(f"/v1/jobs/{job_id}/result").json()["items"]) == _CHUNK
    gate.touch()
    assert http.post(f"/v1/jobs/{job_id}/retry").status_code == 202
    lab.wait_for_all()
    assert http.get(f"/v1/jobs/{job_id}").json()["counts"]["succeeded"] == _CHUNK + 1


def test_a_job_past_its_deadline_expires_while_it_runs(lab: Lab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = lab.submit(f"gate {gate}", ends="expired", deadline_s=2.0)
    lab.until(lambda: lab.chunk(job_id).attempt, "the start of the job")
    lab.wait_for_all()
    gate.touch()
    assert lab.stack.http.get(f"/v1/jobs/{job_id}").json()["error"]["code"] == "deadline_exceeded"
