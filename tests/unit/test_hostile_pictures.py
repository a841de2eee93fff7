"""A corpus of hostile pictures, read in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests import hostile_pictures
from tests.stack import DEADLINE_S

GROWN_MB = 500  # the most that all of them together may cost, eight at a time


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_pictures"], capture_output=True, timeout=5 * DEADLINE_S, check=True
    )
    came: dict[str, Any] = json.loads(done.stdout)
    return came


def as_wanted(wanted: str, came: str | None) -> bool:
    """``came`` is a size, or None for an error."""
    return wanted == "either" or came == (None if wanted == "error" else wanted)


def test_each_gives_its_error_or_the_right_picture(read: dict[str, Any]) -> None:
    assert len(read["read"]) >= 200
    for one in read["read"]:
        refused = [one[use].startswith("error: ") for use in ("inspect", "decode", "thumbnail")]
        # What is accepted as an upload can be decoded later on, and the other way round.
        assert len(set(refused)) == 1, one
        assert as_wanted(one["wanted"], None if refused[0] else one["inspect"]), one
        assert refused[0] or (one["decode"], one["thumbnail"]) == ("RGB", "ffd8"), one


def test_no_decoder_but_those_of_the_list_sees_any_of_them(read: dict[str, Any]) -> None:
    assert set(read["plugins"]) == set(hostile_pictures.LISTED)


def test_all_of_them_at_once_cost_a_bounded_amount_of_memory(read: dict[str, Any]) -> None:
    assert read["grown_mb"] < GROWN_MB
