"""A bar on stderr beside work that writes to stdout."""

from __future__ import annotations

import pytest

from revln.progress_bar import progress_bar, tracked


def test_a_bar_says_on_stderr_how_much_is_done_of_what_and_the_last_note(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("joint 1/2", 5, done=1) as advance:
        advance(1, "loss 0.5")
        advance(3, "loss 0.25")
    assert list(tracked("abc", "pictures", hidden=True)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "joint 1/2" in err
    assert "5/5" in err
    assert "loss 0.25" in err
    assert "pictures" not in err
