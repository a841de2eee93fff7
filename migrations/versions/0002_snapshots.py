"""Snapshots of collections' indexes, and which of them each collection is served from

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("collection_id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("type", sa.String(length=16), nullable=True),
        sa.Column("factory", sa.String(length=128), nullable=True),
        sa.Column("parameters", _JSON, nullable=True),
        sa.Column("up_to_seq", sa.BigInteger(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("recall", sa.Double(), nullable=True),
        sa.Column("qps", sa.Double(), nullable=True),
        sa.Column("exact_qps", sa.Double(), nullable=True),
        sa.Column("build_s", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_snapshots_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
    )
    with op.batch_alter_table("snapshots", schema=None) as batch_op:
        batch_op.create_index("ix_snapshots_collection_id_id", ["collection_id", "id"], unique=False)
        batch_op.create_index("ix_snapshots_sha256", ["sha256"], unique=False)
    op.add_column("collections", sa.Column("snapshot_id", sa.String(length=36), nullable=True))


def downgrade() -> None:
    # Not in batch mode: that makes the table anew on SQLite, and dropping the old one would take every log with it.
    op.drop_column("collections", "snapshot_id")
    with op.batch_alter_table("snapshots", schema=None) as batch_op:
        batch_op.drop_index("ix_snapshots_sha256")
        batch_op.drop_index("ix_snapshots_collection_id_id")

    op.drop_table("snapshots")
