"""What a deleted collection leaves is removed in steps

The rows of an item no longer refer to their collection, or deleting that one would delete them all at once; checking the
reference of each new row also took a fifth of the time of appending on PostgreSQL. SQLite copies both tables for this.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TABLES = ("vectors", "items")


def upgrade() -> None:
    op.create_table(
        "retired_collections",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retired_collections")),
    )
    for table in _TABLES:
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_constraint(f"fk_{table}_collection_id_collections", type_="foreignkey")


def downgrade() -> None:
    for table in _TABLES:
        # What waits to be removed has no collection to refer to.
        op.execute(f"DELETE FROM {table} WHERE collection_id NOT IN (SELECT id FROM collections)")  # noqa: S608
        with op.batch_alter_table(table) as batch_op:
            batch_op.create_foreign_key(
                f"fk_{table}_collection_id_collections", "collections", ["collection_id"], ["id"], ondelete="CASCADE"
            )
    op.drop_table("retired_collections")
