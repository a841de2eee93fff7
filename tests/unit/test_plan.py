"""Which index a collection gets."""

from __future__ import annotations

import pytest

from revln.errors import JobError
from revln.index.base import IndexType
from revln.index.plan import Plan, make_plan


def auto(count: int, memory_bytes: int = 2**33, **asked: int) -> Plan:
    return make_plan(None, count, 256, flat_rows=20_000, memory_bytes=memory_bytes, **asked)


@pytest.mark.parametrize(("count", "kind", "lists"), [
    (20_000, IndexType.FLAT, 0), (20_001, IndexType.IVF, 849), (200_000, IndexType.IVF, 2_683),
    (1_000_000, IndexType.IVF, 6_000),
])  # fmt: skip
def test_auto_takes_exact_search_while_it_is_cheap_and_lists_above(count: int, kind: IndexType, lists: int) -> None:
    plan = auto(count)
    assert (plan.kind, plan.lists) == (kind, lists)


def test_auto_takes_codes_where_whole_vectors_do_not_fit() -> None:
    assert auto(1_000_000, memory_bytes=2**29).kind is IndexType.IVFPQ
    with pytest.raises(JobError, match="REVLN_INDEX_MEMORY_BYTES"):
        auto(1_000_000, memory_bytes=2**20)


def test_lists_are_as_asked_for_but_none_is_left_with_under_ten_rows() -> None:
    assert auto(100_000, lists=64).lists == 64
    assert auto(30_000, lists=30_000).lists == 3_000
