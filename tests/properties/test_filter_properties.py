"""SQL says of every filter what `revln.jobs.filters.matches` says, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from revln.db import tables
from revln.db.collections.filters import filter_clause
from revln.db.engine import Database
from revln.jobs.filters import FilterError, matches, parse_filter

# Few of each, so that filters and items meet; among them what SQL, JSON paths and LIKE would trip over.
KEYS = ["a", "b", "not", "a.b", "0", 'q"uo\\te', "$", "é", "😀", "x' OR 1=1 --", "[0]", "%"]
STRINGS = ["", "a", "B", "aB", "é", "z", "😀", "\uffff", "1", "true", "null", "' OR 1=1 --", '"', "\\", "%", "[]", "{}"]
NUMBERS = [
    0,
    1,
    -1,
    1.0,
    0.5,
    0.1,
    0.30000000000000004,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    float(2**53),
    2**63 - 1,
    -(2**63),
    2**63,
    10**25,
    1e300,
    5e-324,
    -0.0,
]

strings, numbers = st.sampled_from(STRINGS), st.sampled_from(NUMBERS)
scalars = st.one_of(st.none(), st.booleans(), strings, numbers)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=6,
)
documents = st.one_of(st.none(), st.dictionaries(st.sampled_from(KEYS), values, max_size=5))


def escaped(key: str) -> str:
    plain = key.replace("\\", "\\\\").replace(".", "\\.")
    return "\\" + plain if key in ("and", "or", "not") else plain


paths = st.lists(st.sampled_from(KEYS).map(escaped), min_size=1, max_size=3).map(".".join)
conditions = st.one_of(
    scalars,
    st.fixed_dictionaries({"eq": scalars}),
    st.fixed_dictionaries({"ne": scalars}),
    st.fixed_dictionaries({"in": st.lists(scalars, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"exists": st.booleans()}),
    st.fixed_dictionaries({"contains": scalars}),
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.one_of(strings, numbers), min_size=1, max_size=2),
)
fields = st.dictionaries(paths, conditions, min_size=1, max_size=2)
filters = st.recursive(
    fields,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)


def fill(db: Database, found: list[dict[str, Any] | None]) -> None:
    with db.write() as connection:
        for table in (tables.collections, tables.vectors, tables.items):
            connection.execute(delete(table))
        connection.execute(
            insert(tables.collections).values(
                id="c", name="c", model="m", model_fingerprint="f", dim=1, metadata={}, created_at=0, updated_at=0
            )
        )
        rows = [
            {"collection_id": "c", "seq": seq, "op": "upsert", "item_id": str(seq), "metadata": one, "created_at": 0.0}
            for seq, one in enumerate(found)
        ]
        connection.execute(insert(tables.vectors), rows)


def by_sql(db: Database, wanted: Any) -> list[int]:
    columns = tables.vectors.c
    with db.read() as connection:
        clause = filter_clause(parse_filter(wanted), columns.metadata, connection)
        return list(connection.scalars(select(columns.seq).where(clause).order_by(columns.seq)))


def by_hand(found: list[dict[str, Any] | None], wanted: Any) -> list[int]:
    return [seq for seq, one in enumerate(found) if matches(parse_filter(wanted), one or {})]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents, min_size=1, max_size=8), st.lists(filters, min_size=1, max_size=4))
def test_sql_selects_what_the_meaning_says(db: Database, found: list[Any], wanted: list[Any]) -> None:
    fill(db, found)
    for one in wanted:
        assert by_sql(db, one) == by_hand(found, one), one


EVERY_VALUE: list[dict[str, Any] | None] = [{"a": one} for one in [*STRINGS, *NUMBERS, None, True, False, [], {}]]


def every_comparison() -> Iterator[Any]:
    for value in [*STRINGS, *NUMBERS, None, True, False]:
        yield from ({"a": value}, {"a": {"ne": value}}, {"a": {"in": [value, "z"]}}, {"a": {"contains": value}})
        for operator in ("gt", "gte", "lt", "lte"):
            yield {"a": {operator: value}}


def test_every_value_against_every_value(db: Database) -> None:
    fill(db, EVERY_VALUE)
    tried = 0
    for wanted in every_comparison():
        try:
            parse_filter(wanted)
        except FilterError:
            continue
        tried += 1
        assert by_sql(db, wanted) == by_hand(EVERY_VALUE, wanted), wanted
    assert tried > 200


@pytest.mark.parametrize("key", [key for key in KEYS if key != "not"])
def test_every_key_is_found_at_every_depth(db: Database, key: str) -> None:
    found: list[dict[str, Any] | None] = [
        {key: 1},
        {"b": {key: 1}},
        {key: {key: 1}},
        {key: [1]},
        {"b": [{key: 1}]},
        None,
    ]
    fill(db, found)
    for path in (escaped(key), f"b.{escaped(key)}", f"{escaped(key)}.{escaped(key)}"):
        for wanted in ({path: 1}, {path: {"contains": 1}}, {path: {"exists": False}}):
            assert by_sql(db, wanted) == by_hand(found, wanted), wanted


IDS = [{"uid": 2**53 + n} for n in range(4)]


@pytest.mark.parametrize(
    ("wanted", "passing"),
    [
        ({"uid": 2**53 + 1}, [1]),
        ({"uid": {"ne": 2**53 + 1}}, [0, 2, 3]),
        ({"uid": {"gt": 2**53}}, [1, 2, 3]),
        ({"uid": {"lte": 2**53 + 1}}, [0, 1]),
        ({"uid": {"in": [2**53 + 1, 2**53 + 3]}}, [1, 3]),
    ],
)  # fmt: skip
def test_integers_of_64_bits_are_compared_exactly(db: Database, wanted: Any, passing: list[int]) -> None:
    fill(db, list(IDS))
    assert by_sql(db, wanted) == by_hand(list(IDS), wanted) == passing


def test_in_of_an_array_is_any_of_its_elements(db: Database) -> None:
    found: list[dict[str, Any] | None] = [{"tags": ["a", "b"]}, {"tags": ["c"]}, {"tags": "a"}, {"tags": []}, None]
    fill(db, found)
    for wanted, passing in (({"tags": {"in": ["a"]}}, [0, 2]), ({"not": {"tags": {"in": ["a", "c"]}}}, [3, 4])):
        assert by_sql(db, wanted) == by_hand(found, wanted) == passing
