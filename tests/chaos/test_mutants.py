"""`make chaos-mutants` is run by hand: a change of the product shall not break it unnoticed."""

from __future__ import annotations

import pytest

from tests.chaos.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_what_a_mutant_cuts_out_is_there(mutant: Mutant) -> None:
    for cut in mutant.cuts:
        assert (ROOT / cut.path).read_text().count(cut.was) == 1
