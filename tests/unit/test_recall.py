"""Recall where a score is no number: a broken model never looks like a perfect one."""

from __future__ import annotations

import numpy as np
import pytest

from revln.training.recall import recall_both_ways


def test_vectors_that_are_no_numbers_recall_nothing() -> None:
    broken = np.full((20, 4), np.nan, dtype=np.float32)
    i2t, t2i = recall_both_ways(broken, broken, list(range(20)))
    assert i2t.r10 == t2i.r10 == 0.0
    assert i2t.median_rank == t2i.median_rank == 20


@pytest.mark.parametrize("side", [0, 1])
def test_a_vector_that_is_no_number_counts_against_the_model_and_spares_no_other(side: int) -> None:
    pair = [np.eye(20, dtype=np.float32), np.eye(20, dtype=np.float32)]
    pair[side][3] = np.nan
    i2t, t2i = recall_both_ways(*pair, list(range(20)))
    # The nineteen others are right but for the one answer that cannot be compared, which is counted as nearer.
    whole, told = (i2t, t2i) if side == 1 else (t2i, i2t)
    assert (whole.r1, whole.r5) == (0.0, 95.0)
    assert (told.r1, told.r10) == (95.0, 95.0)
