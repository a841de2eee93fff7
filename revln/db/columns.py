"""What the tables are made of: their metadata, and the columns that many of them have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, MetaData, String, text
from sqlalchemy.dialects.postgresql import JSONB

from revln.access import DEFAULT_TENANT

__all__ = ["Id", "Json", "Sha256", "count_column", "metadata", "tenant_column", "where"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Id = String(36)
Sha256 = String(64)


def tenant_column() -> Column[str]:
    return Column("tenant", String(64), nullable=False, server_default=text(f"'{DEFAULT_TENANT}'"))


def count_column(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def where(condition: str) -> dict[str, Any]:
    return {f"{dialect}_where": text(condition) for dialect in ("sqlite", "postgresql")}
