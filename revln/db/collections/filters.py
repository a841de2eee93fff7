"""Filters as SQL: a clause over a metadata column, the same on SQLite and PostgreSQL.

Every value and every key is a bound parameter. Each test is made two-valued (a missing field is false, not NULL), so
that NOT means what `revln.jobs.filters.matches` means by it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Double,
    Numeric,
    Text,
    and_,
    case,
    exists,
    false,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from revln.jobs.filters import AllOf, AnyOf, Condition, Filter, Not, Operator, Scalar, is_integer

__all__ = ["filter_clause"]

_Clause = ColumnElement[bool]
_COMPARE: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.GT: operator.gt,
    Operator.GTE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LTE: operator.le,
}


@dataclass(frozen=True, slots=True)
class _Node:
    """A place in a JSON document: what is there, and its value if it is of that type."""

    there: _Clause
    is_null: _Clause
    is_true: _Clause
    is_false: _Clause
    is_number: _Clause
    is_string: _Clause
    is_array: _Clause
    number: ColumnElement[float]
    is_integer: _Clause  # of 64 bits
    integer: ColumnElement[int]  # NULL, or not to be looked at, if it is none
    string: ColumnElement[str]
    ordered: ColumnElement[str]  # the string, compared by its code points
    array: ColumnElement[Any]  # the array, or an empty one


def filter_clause(wanted: Filter, metadata: ColumnElement[Any], connection: Connection) -> _Clause:
    """The WHERE clause that holds for the rows whose ``metadata`` passes."""
    sqlite = connection.dialect.name == "sqlite"
    return _clause(wanted, metadata, _Sqlite() if sqlite else _Postgresql())


class _Sqlite:
    """json_type and json_extract by a path, or json_each step by step for keys that a path cannot hold.

    Up to 3.44 SQLite compares a path with the key as it is written in the document, escapes and all.
    """

    _PLAIN = re.compile(r"[A-Za-z0-9_ -]+")

    def at(self, metadata: ColumnElement[Any], path: Sequence[str]) -> _Node:
        if all(self._PLAIN.fullmatch(step) for step in path):
            place = "$" + "".join(f'."{step}"' for step in path)
            return self._node(func.json_type(metadata, place), func.json_extract(metadata, place))
        found = source = self._children(metadata, "s0")
        here = [found.c.key == path[0]]
        for number, key in enumerate(path[1:], start=1):
            found = self._children(case((found.c.type == "object", found.c.value), else_="{}"), f"s{number}")
            source = source.join(found, true())
            here.append(found.c.key == key)

        def read(column: Any) -> Any:
            return select(column).select_from(source).where(*here).scalar_subquery()

        return self._node(read(found.c.type), read(found.c.value))

    def element(self, node: _Node) -> _Node:
        elements = self._children(node.array, "element")
        return self._node(elements.c.type, elements.c.value)

    @staticmethod
    def _children(document: Any, name: str) -> Any:
        return func.json_each(document).table_valued("key", "type", "value", name=name)

    @staticmethod
    def _node(kind: Any, value: Any) -> _Node:
        return _Node(
            there=kind.is_not(None),
            is_null=kind == "null",
            is_true=kind == "true",
            is_false=kind == "false",
            is_number=kind.in_(["integer", "real"]),
            is_string=kind == "text",
            is_array=kind == "array",
            number=sql_cast(value, Double),
            # Not json_type: of an integer that is longer, json_extract makes a float.
            is_integer=and_(kind == "integer", func.typeof(value) == "integer"),
            integer=value,
            string=value,
            ordered=value,
            array=case((kind == "array", value), else_="[]"),
        )


class _Postgresql:
    """``->`` with a text: an element of an array is not reached by it."""

    def at(self, metadata: ColumnElement[Any], path: Sequence[str]) -> _Node:
        value = metadata
        for step in path:
            value = value.op("->", return_type=JSONB())(sql_cast(literal(step, Text), Text))
        return self._node(value)

    def element(self, node: _Node) -> _Node:
        return self._node(func.jsonb_array_elements(node.array, type_=JSONB()).column_valued("element"))

    @staticmethod
    def _node(value: Any) -> _Node:
        kind = func.jsonb_typeof(value)
        string = value.op("#>>", return_type=Text())(literal_column("'{}'::text[]"))
        # Nested, because AND promises no order. A float has a point, but for one above 1e16.
        digits = case((string.op("~")(literal_column("'^-?[0-9]{1,19}$'")), sql_cast(string, Numeric)))
        fits = digits.between(literal_column("-9223372036854775808"), literal_column("9223372036854775807"))
        integer = case((and_(kind == "number", fits), sql_cast(digits, BigInteger)))
        return _Node(
            there=kind.is_not(None),
            is_null=kind == "null",
            is_true=and_(kind == "boolean", string == "true"),
            is_false=and_(kind == "boolean", string == "false"),
            is_number=kind == "number",
            is_string=kind == "string",
            is_array=kind == "array",
            # CASE, because AND promises no order and the cast of anything else is an error.
            number=case((kind == "number", sql_cast(value, Double))),
            is_integer=integer.is_not(None),
            integer=integer,
            string=string,
            ordered=string.collate("C"),
            array=case((kind == "array", value), else_=literal_column("'[]'::jsonb")),
        )


def _clause(wanted: Filter, metadata: ColumnElement[Any], dialect: _Sqlite | _Postgresql) -> _Clause:
    match wanted:
        case AllOf(parts):
            return and_(*(_clause(part, metadata, dialect) for part in parts))
        case AnyOf(parts):
            return or_(*(_clause(part, metadata, dialect) for part in parts))
        case Not(part):
            return not_(_clause(part, metadata, dialect))
        case Condition():
            node = dialect.at(metadata, wanted.path)
            # A missing field makes every comparison NULL; two-valued, so that NOT turns it round.
            return func.coalesce(_holds(wanted, node, dialect), false(), type_=Boolean())


def _holds(condition: Condition, node: _Node, dialect: _Sqlite | _Postgresql) -> _Clause:
    value = condition.values[0]
    match condition.operator:
        case Operator.EXISTS:
            return node.there if value else not_(node.there)
        case Operator.EQ:
            return _is_one_of(node, condition.values)
        case Operator.IN:
            among = and_(node.is_array, exists().where(_is_one_of(dialect.element(node), condition.values)))
            return or_(_is_one_of(node, condition.values), among)
        case Operator.CONTAINS:
            among = and_(node.is_array, exists().where(_is_one_of(dialect.element(node), [value])))
            if not isinstance(value, str):
                return among
            found_in = func.instr if isinstance(dialect, _Sqlite) else func.strpos
            return or_(among, and_(node.is_string, found_in(node.string, value) > 0))
        case _:
            return _in_order(_COMPARE[condition.operator], node, value)


def _in_order(compare: Callable[[Any, Any], Any], node: _Node, value: Scalar) -> _Clause:
    if isinstance(value, str):
        return and_(node.is_string, cast(_Clause, compare(node.ordered, value)))
    as_floats = cast(_Clause, compare(node.number, float(value or 0)))
    if not is_integer(value):
        return and_(node.is_number, as_floats)
    return and_(node.is_number, case((node.is_integer, compare(node.integer, _integer(value))), else_=as_floats))


def _integer(value: Any) -> ColumnElement[int]:
    return literal(value, BigInteger)


def _is_one_of(node: _Node, values: Sequence[Scalar]) -> _Clause:
    clauses: list[_Clause] = []
    strings = [value for value in values if isinstance(value, str)]
    integers = [value for value in values if is_integer(value)]
    floats = [value for value in values if isinstance(value, float)]
    if strings:
        clauses.append(and_(node.is_string, node.string.in_(strings)))
    if floats:
        clauses.append(and_(node.is_number, node.number.in_(floats)))
    if integers:
        as_floats = node.number.in_([float(value or 0) for value in integers])
        whole = case((node.is_integer, node.integer.in_([_integer(value) for value in integers])), else_=as_floats)
        clauses.append(and_(node.is_number, whole))
    for value, clause in ((None, node.is_null), (True, node.is_true), (False, node.is_false)):
        if any(one is value for one in values):
            clauses.append(clause)
    return or_(*clauses)
