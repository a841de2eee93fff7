"""Generations: a collection embedded by another model, beside the one that serves or after it

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collections", sa.Column("shadow_of", sa.String(length=36), nullable=True))
    op.add_column("collections", sa.Column("shadow_role", sa.String(length=16), nullable=True))
    op.add_column("collections", sa.Column("shadow_seq", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    # Without these columns a shadow would be a collection of its own.
    op.execute("DELETE FROM collections WHERE shadow_of IS NOT NULL")
    for name in ("shadow_seq", "shadow_role", "shadow_of"):
        op.drop_column("collections", name)
