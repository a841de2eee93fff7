"""Filters on items' metadata: the grammar, its limits, and what it means.

`revln.db.collections.filters` says the same in SQL.

    filter    = {field: condition, …, "and": [filter, …], "or": [filter, …], "not": filter}     all of them hold
    condition = value | {operator: operand, …}                                                  all of them hold
    operator  = eq ne in gt gte lt lte exists contains
    field     = a key of the metadata; "a.b" is b inside a; a backslash takes the special meaning from what follows it

The meaning, which `matches` states in Python and a property test holds SQL to:

- A value equals only a value of its own JSON type: number, string, boolean or null. Two integers of 64 bits are
  compared as they are, all other numbers as 64-bit floats.
- in: the value is one of these; an array passes if one of its elements is.
- gt, gte, lt, lte order numbers among numbers and strings among strings, those by their code points.
- contains: an array that has the value among its elements, or a string that has the string within it.
- A field that is missing equals nothing, not even null, and lies in no range; so ``ne`` and ``not`` hold for it.
- A path leads through objects only: "a.0" is no element of an array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from revln.jobs.text import storable

__all__ = [
    "AllOf",
    "AnyOf",
    "Condition",
    "Filter",
    "FilterError",
    "Not",
    "Operator",
    "Scalar",
    "count_conditions",
    "is_integer",
    "matches",
    "parse_filter",
]

MAX_DEPTH = 16  # and, or, not inside each other; the SQL is as deep
MAX_CONDITIONS = 256  # each is a few look-ups for every item that is tested
MAX_VALUES = 5_000  # of all conditions; each is a bound parameter, and SQLite takes 32,766
MAX_STRING_CHARS = 4_096
MAX_PATH_STEPS = 16  # metadata is no deeper

Scalar = str | int | float | bool | None


class FilterError(ValueError):
    """A filter that cannot be read: what is wrong, and where in it (RFC 6901)."""

    def __init__(self, detail: str, pointer: str) -> None:
        super().__init__(detail)
        self.detail = detail
        # pydantic, which carries it on, can hold no half of a surrogate.
        self.pointer = pointer.encode("utf-8", "replace").decode()


class Operator(StrEnum):
    """``ne`` is not here: it is read as not eq."""

    EQ = "eq"
    IN = "in"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    EXISTS = "exists"
    CONTAINS = "contains"


_RANGES = frozenset({Operator.GT, Operator.GTE, Operator.LT, Operator.LTE})
_ALL = ("eq", "ne", "in", "gt", "gte", "lt", "lte", "exists", "contains")


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of one field. ``values`` holds one value, but for ``in``; numbers are ints of 64 bits, or floats."""

    path: tuple[str, ...]
    operator: Operator
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


Filter = Condition | AllOf | AnyOf | Not


def count_conditions(wanted: Filter) -> int:
    """Return how many tests an item is put to at most."""
    match wanted:
        case AllOf(parts) | AnyOf(parts):
            return sum(map(count_conditions, parts))
        case Not(part):
            return count_conditions(part)
        case Condition():
            return 1


# --- reading ------------------------------------------------------------------------------------------------------


def parse_filter(raw: Any) -> Filter:
    """Read a filter as it stands in JSON.

    Raises:
        FilterError: the first thing that is wrong.
    """
    return _Reader().filter(raw, "", MAX_DEPTH)


class _Reader:
    """Counts what it has read: a filter is small, whatever its form."""

    def __init__(self) -> None:
        self._conditions = 0
        self._values = 0

    def filter(self, raw: Any, at: str, depth_left: int) -> Filter:
        if not isinstance(raw, Mapping):
            raise FilterError('a filter is an object, as in {"year": {"gte": 2020}}', at)
        if not raw:
            raise FilterError("an empty filter; name a field, or leave the filter out", at)
        if not depth_left:
            raise FilterError(f"filters nested more than {MAX_DEPTH} deep; flatten it", at)
        parts = [part for key, value in raw.items() for part in self._entry(key, value, at, depth_left - 1)]
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _entry(self, key: Any, value: Any, at: str, depth_left: int) -> Iterator[Filter]:
        where = f"{at}/{str(key).replace('~', '~0').replace('/', '~1')}"
        if key == "not":
            yield Not(self.filter(value, where, depth_left))
        elif key in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise FilterError(f'"{key}" takes a list of at least one filter', where)
            parts = tuple(self.filter(part, f"{where}/{number}", depth_left) for number, part in enumerate(value))
            yield AllOf(parts) if key == "and" else AnyOf(parts)
        else:
            path = _path(str(key), where)
            conditions = value if isinstance(value, Mapping) else {"eq": value}
            if not conditions:
                raise FilterError(f"an empty condition; give a value or one of {', '.join(_ALL)}", where)
            for name, operand in conditions.items():
                yield self._condition(path, name, operand, f"{where}/{name}" if conditions is value else where)

    def _condition(self, path: tuple[str, ...], name: Any, operand: Any, at: str) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(f"more than {MAX_CONDITIONS} conditions; use in, or a simpler filter", at)
        if name not in _ALL:
            raise FilterError(
                f"there is no operator {str(name)[:80]!r}; there are {', '.join(_ALL)}. Nested metadata is named by a "
                'path, as in "a.b"',
                at,
            )
        if name == "ne":
            return Not(Condition(path, Operator.EQ, (self._value(operand, at),)))
        operator = Operator(name)
        if operator is Operator.IN:
            if not isinstance(operand, list) or not operand:
                raise FilterError("in takes a list of at least one value", at)
            return Condition(path, operator, tuple(self._value(one, f"{at}/{i}") for i, one in enumerate(operand)))
        if operator is Operator.EXISTS and not isinstance(operand, bool):
            raise FilterError("exists takes true or false", at)
        value = self._value(operand, at)
        if operator in _RANGES and (value is None or isinstance(value, bool)):
            raise FilterError(f"{operator} takes a number or a string", at)
        return Condition(path, operator, (value,))

    def _value(self, value: Any, at: str) -> Scalar:
        self._values += 1
        if self._values > MAX_VALUES:
            raise FilterError(f"more than {MAX_VALUES:,} values in all; split the filter", at)
        if isinstance(value, str):
            if len(value) > MAX_STRING_CHARS:
                raise FilterError(f"{len(value):,} characters; at most {MAX_STRING_CHARS:,} are compared", at)
            try:
                return storable(value)
            except ValueError as err:
                raise FilterError(str(err), at) from err
        if value is None or isinstance(value, bool):
            return value
        if is_integer(value):
            return int(value)
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
            raise FilterError("a number must be finite and fit 64 bits as a float", at)
        raise FilterError("a value is a string, a number, true, false or null; an array is searched by contains", at)


def _path(field: str, at: str) -> tuple[str, ...]:
    steps, step, characters = [], "", iter(field)
    for character in characters:
        if character == ".":
            steps.append(step)
            step = ""
        else:
            step += next(characters, "\\") if character == "\\" else character
    steps.append(step)
    if not all(steps):
        raise FilterError("a path has an empty step; write a dot that belongs to a key as \\.", at)
    if len(steps) > MAX_PATH_STEPS:
        raise FilterError(f"a path of {len(steps)} steps; metadata is at most {MAX_PATH_STEPS} deep", at)
    try:
        return tuple(storable(one) for one in steps)
    except ValueError as err:
        raise FilterError(str(err), at) from err


# --- meaning ------------------------------------------------------------------------------------------------------

_MISSING = object()


def matches(wanted: Filter, metadata: Mapping[str, Any]) -> bool:
    """Whether an item with this metadata passes."""
    match wanted:
        case AllOf(parts):
            return all(matches(part, metadata) for part in parts)
        case AnyOf(parts):
            return any(matches(part, metadata) for part in parts)
        case Not(part):
            return not matches(part, metadata)
        case Condition(path, operator, values):
            return _holds(operator, values, _at(metadata, path))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        if not isinstance(value, Mapping) or step not in value:
            return _MISSING
        value = value[step]
    return value


def _holds(operator: Operator, values: tuple[Scalar, ...], found: Any) -> bool:
    value = values[0]
    match operator:
        case Operator.EXISTS:
            return (found is not _MISSING) is value
        case Operator.EQ:
            return _same(found, value)
        case Operator.IN:
            among = found if isinstance(found, list) else [found]
            return any(_same(element, one) for element in among for one in values)
        case Operator.CONTAINS:
            if isinstance(found, list):
                return any(_same(element, value) for element in found)
            return isinstance(found, str) and isinstance(value, str) and value in found
        case _:
            return _in_range(operator, found, value)


def _in_range(operator: Operator, found: Any, limit: Any) -> bool:
    if isinstance(limit, int | float):
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        found, limit = _comparable(found, limit)
    elif not isinstance(found, str):
        return False
    match operator:
        case Operator.GT:
            return bool(found > limit)
        case Operator.GTE:
            return bool(found >= limit)
        case Operator.LT:
            return bool(found < limit)
        case _:
            return bool(found <= limit)


def _same(found: Any, value: Scalar) -> bool:
    if value is None or isinstance(value, bool):
        return found is value
    if isinstance(value, str):
        return isinstance(found, str) and found == value
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    found, value = _comparable(found, value)
    return bool(found == value)


def is_integer(value: Any) -> bool:
    """Whether both databases hold the value as an integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _comparable(found: float, value: float) -> tuple[float, float]:
    return (found, value) if is_integer(found) and is_integer(value) else (float(found), float(value))
