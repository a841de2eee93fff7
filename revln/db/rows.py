"""Rows as dataclasses: fields are named like the columns that they are read from."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_type_hints

from sqlalchemy import Column, Row, Table

__all__ = ["columns_of", "row_to"]

_T = TypeVar("_T")


def columns_of(table: Table, cls: type[Any]) -> list[Column[Any]]:
    """Return the columns that a dataclass is read from, to be selected."""
    return [table.c[field.name] for field in fields(cls)]


def row_to(cls: type[_T], row: Row[*tuple[Any, ...]]) -> _T:
    """Return the dataclass that a row holds."""
    enums: dict[str, type[StrEnum]] = _enums(cls)  # type: ignore[arg-type]  # a class is hashable
    return cls(**{name: enums[name](value) if name in enums else value for name, value in row._mapping.items()})


@cache
def _enums(cls: type[Any]) -> dict[str, type[StrEnum]]:
    hints = get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, StrEnum)}
