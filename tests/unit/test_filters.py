"""The grammar of filters: what is read, what is refused and where, and what a filter means."""

from __future__ import annotations

from typing import Any

import pytest

from revln.jobs.filters import AllOf, Condition, FilterError, Not, Operator, matches, parse_filter

ITEM = {
    "year": 2020,
    "score": 0.5,
    "tag": "beach",
    "tags": ["dog", "snow", 3, True, None],
    "seen": True,
    "gone": None,
    "camera": {"lens": {"f": 1.8}, "a.b": "dotted"},
    "or": "a key",
    'Ωmega "q"': "é",
}


@pytest.mark.parametrize(
    "wanted",
    [
        {"year": 2020},
        {"year": 2020.0},
        {"year": {"eq": 2020, "ne": 2021, "gte": 2020, "lte": 2020, "gt": 2019.5, "lt": 2021}},
        {"tag": {"in": ["beach", 5]}},
        {"tags": {"in": ["dog", "cat"]}},
        {"tag": {"gt": "bea", "lt": "beb"}},
        {"tags": {"contains": "dog"}},
        {"tags": {"contains": 3.0}},
        {"tags": {"contains": True}},
        {"tags": {"contains": None}},
        {"tag": {"contains": "eac"}},
        {"tag": {"contains": ""}},
        {"gone": None},
        {"gone": {"exists": True}},
        {"missing": {"exists": False}},
        {"missing": {"ne": 3}},
        {"not": {"missing": {"gt": 3}}},
        {"camera.lens.f": {"lt": 2}},
        {"camera.a\\.b": "dotted"},
        {"\\or": "a key"},
        {'Ωmega "q"': "é"},
        {"or": [{"year": 1}, {"tag": "beach"}], "seen": True},
        {"and": [{"year": 2020}, {"not": {"tag": "snow"}}]},
    ],
)
def test_what_holds(wanted: Any) -> None:
    assert matches(parse_filter(wanted), ITEM)
    assert not matches(parse_filter({"not": wanted}), ITEM)


@pytest.mark.parametrize(
    "wanted",
    [
        {"year": "2020"},
        {"seen": 1},
        {"year": True},
        {"missing": None},
        {"gone": {"gt": 0}},
        {"missing": {"exists": True}},
        {"tags": "dog"},
        {"tags": {"in": ["cat"]}},
        {"tags": {"contains": "do"}},
        {"tags.0": "dog"},
        {"tag": {"gt": 5}},
        {"year": {"lt": "3000"}},
        {"camera": {"contains": "lens"}},
        {"tag": "beach' OR 1=1 --"},
    ],
)
def test_what_does_not_hold(wanted: Any) -> None:
    assert not matches(parse_filter(wanted), ITEM)


def nested(levels: int) -> Any:
    found: Any = {"a": 1}
    for _ in range(levels):
        found = {"not": found}
    return found


@pytest.mark.parametrize(
    ("wanted", "pointer", "says"),
    [
        ([], "", "an object"),
        ({}, "", "empty filter"),
        ({"year": {}}, "/year", "empty condition"),
        ({"year": {"around": 3}}, "/year/around", "no operator 'around'"),
        ({"year": {"lens": {"f": 1}}}, "/year/lens", '"a.b"'),
        ({"year": {"gte": None}}, "/year/gte", "a number or a string"),
        ({"year": {"gte": [1]}}, "/year/gte", "contains"),
        ({"year": [1, 2]}, "/year", "contains"),
        ({"tag": {"in": []}}, "/tag/in", "at least one"),
        ({"tag": {"in": ["a", {}]}}, "/tag/in/1", "a value is"),
        ({"tag": {"exists": 1}}, "/tag/exists", "true or false"),
        ({"or": {"a": 1}}, "/or", "a list"),
        ({"or": [{"a": 1}, {"b": {"gt": True}}]}, "/or/1/b/gt", "a number or a string"),
        ({"a/b~": {"x": 1}}, "/a~1b~0/x", "no operator"),
        ({"a..b": 1}, "/a..b", "empty step"),
        ({"": 1}, "/", "empty step"),
        ({"a\x00": 1}, "/a\x00", "U+0000"),
        ({"a": "\ud800"}, "/a", "U+D800"),
        ({"a\ud800": 1}, "/a?", "U+D800"),
        ({"a": "x" * 5_000}, "/a", "at most 4,096"),
        ({"a": 10**400}, "/a", "finite"),
        ({"a": float("nan")}, "/a", "finite"),
        ({"a": {"in": list(range(6_000))}}, "/a/in/5000", "5,000"),
        ({f"k{n}": n for n in range(300)}, "/k256", "256 conditions"),
        (nested(100), "/not" * 16, "16 deep"),
        ({".".join("a" * 20): 1}, "/" + ".".join("a" * 20), "20 steps"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(wanted: Any, pointer: str, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(wanted)
    assert caught.value.pointer == pointer
    assert says in caught.value.detail


def test_the_deepest_filter_that_is_read_is_read() -> None:
    found = parse_filter(nested(15))
    for _ in range(15):
        assert isinstance(found, Not)
        found = found.part
    assert found == Condition(("a",), Operator.EQ, (1.0,))


def test_several_fields_all_have_to_hold() -> None:
    assert parse_filter({"a": 1, "b": {"gt": 2, "lt": 4}}) == AllOf(
        (
            Condition(("a",), Operator.EQ, (1.0,)),
            Condition(("b",), Operator.GT, (2.0,)),
            Condition(("b",), Operator.LT, (4.0,)),
        )
    )
