"""Dead letters: found among the jobs, looked at chunk by chunk, and run again, over HTTP and from the command line."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from api.answers import ChunkPage, JobPage
from revln.cli.dead import dead
from revln.db.jobs.dead_letters import bury_locked
from revln.db.jobs.read import Job, lock_job
from revln.errors import WorkerLost
from revln.jobs.state import ChunkState
from tests.builders import make_job
from tests.inline import InlineStack
from tests.stack import wait_until


def dead_job(inline: InlineStack) -> Job:
    """Two chunks that nobody may claim yet, of a model that nobody has; the second is dead."""
    db = inline.runtime.db
    job = make_job(db, n_items=4, chunk_items=2, max_attempts=0, model="nobody-has-it")
    with db.write() as connection:
        error = WorkerLost("It died.").as_dict()
        return bury_locked(connection, lock_job(connection, job.id), 1, 0, ChunkState.QUEUED, error)


def test_dead_letters_are_listed_and_run_again(inline: InlineStack) -> None:
    job = dead_job(inline)
    page = JobPage.model_validate_json(inline.http.get("/v1/jobs?dead=true").content)
    assert job.id in [one.id for one in page.jobs]
    none = inline.http.get("/v1/jobs?dead=true&kind=caption").json()
    assert none["jobs"] == []

    def chunks(query: str = "") -> list[Any]:
        return ChunkPage.model_validate_json(inline.http.get(f"/v1/jobs/{job.id}/chunks{query}").content).chunks

    assert [(one.number, one.state, one.counts.failed) for one in chunks()] == [(0, "queued", 0), (1, "dead", 2)]
    (letter,) = chunks("?state=dead")
    assert (letter.first_index, letter.error and letter.error.code) == (2, "worker_lost")
    first = inline.http.get(f"/v1/jobs/{job.id}/chunks?limit=1").json()
    assert [one.number for one in chunks(f"?limit=1&cursor={first['next_cursor']}")] == [1]

    listed = CliRunner().invoke(dead, ["list", "--url", inline.url])
    assert f"{job.id}  embed  running" in listed.output
    assert "chunk 1, items 2 to 3: worker_lost: It died." in listed.output
    refused = CliRunner().invoke(dead, ["retry", "--url", inline.url])
    assert refused.exit_code == 2
    inline.http.post(f"/v1/jobs/{job.id}/cancel").raise_for_status()
    again = CliRunner().invoke(dead, ["retry", job.id, "--url", inline.url])
    assert again.exit_code == 0, again.output
    wait_until(lambda: [one.attempt for one in chunks()] == [1, 1], what="another run")
