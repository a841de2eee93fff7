"""The life of a job, as pure functions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from revln.jobs.state import CHUNK_TRANSITIONS, JOB_TRANSITIONS, ChunkState, JobStatus, Tally, can_change, derive_status

counts = st.integers(0, 5)
tallies = st.builds(Tally, counts, counts, counts, counts, counts, counts, st.integers(0, 50)).filter(
    lambda tally: tally.total > 0
)


def moves(tally: Tally) -> list[Tally]:
    """Every tally that one chunk's change of state, as the transitions allow it, can lead to."""
    reached = []
    for old, news in CHUNK_TRANSITIONS.items():
        for new in news:
            if old != new and getattr(tally, old) > 0:
                reached.append(tally.move(old, new))
    return reached


@settings(deadline=None)
@given(tallies)
def test_a_job_is_done_exactly_when_no_chunk_is_open(tally: Tally) -> None:
    assert derive_status(tally).done == (tally.open == 0)


@settings(deadline=None)
@given(tallies)
def test_whatever_a_chunk_does_the_job_only_changes_as_the_table_allows(tally: Tally) -> None:
    before = derive_status(tally)
    for after in map(derive_status, moves(tally)):
        assert can_change(before, after)


@settings(deadline=None)
@given(tallies)
def test_a_job_with_an_item_done_never_fails(tally: Tally) -> None:
    if tally.items_succeeded:
        assert derive_status(tally) is not JobStatus.FAILED


def test_every_state_stands_in_the_tables() -> None:
    assert set(JOB_TRANSITIONS) == set(JobStatus)
    assert set(CHUNK_TRANSITIONS) == set(ChunkState)
    assert {state for state in ChunkState if state.done} == set(ChunkState) - {ChunkState.QUEUED, ChunkState.RUNNING}
