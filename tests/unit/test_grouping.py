"""Which tests `-n` keeps in one process."""

from __future__ import annotations

import pytest

from tests.conftest import group_of, shared_on


@pytest.mark.parametrize("what", ["stack", "inline"])
def test_tests_that_share_a_stack_are_a_group_whatever_their_file(what: str) -> None:
    for param in shared_on(what):
        ids = [f"tests/integration/test_{file}.py::test_it[{param.id}-3]" for file in ("a", "b")]
        assert {group_of(one) for one in ids} == {f"{what} on {param.values[0]}"}


def test_other_tests_are_grouped_by_their_file_and_experiments_not_at_all() -> None:
    assert group_of("tests/unit/test_a.py::test_it[a dog on snow]") == "tests/unit/test_a.py"
    assert group_of("tests/chaos/test_a.py::test_it[3]") == "tests/chaos/test_a.py::test_it[3]"
