"""Changes of a collection keep the order in which their jobs were accepted

Jobs that are there get their places by when they came in; an item that is there is older than every change to come.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_MAY_STILL_WRITE = sa.text("accepted IS NOT NULL AND deleted_at IS NULL AND (status <> 'succeeded' OR failed > 0)")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("accepted", sa.BigInteger(), nullable=True))
    op.create_table(
        "accepted_changes",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("last", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_accepted_changes")),
    )
    op.execute(
        "UPDATE jobs SET accepted = placed.place FROM (SELECT id, row_number() OVER (PARTITION BY tenant "
        "ORDER BY created_at, id) AS place FROM jobs WHERE kind = 'index') AS placed WHERE placed.id = jobs.id"
    )
    op.execute(
        "INSERT INTO accepted_changes (tenant, last) SELECT tenant, max(accepted) FROM jobs "
        "WHERE accepted IS NOT NULL GROUP BY tenant"
    )
    op.create_index(
        "ix_jobs_tenant_collection_accepted", "jobs", ["tenant", "collection", "accepted"],
        sqlite_where=_MAY_STILL_WRITE, postgresql_where=_MAY_STILL_WRITE,
    )  # fmt: skip
    op.add_column("items", sa.Column("position", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "tombstones",
        sa.Column("collection_id", sa.String(length=36), nullable=False),
        sa.Column("item_id", sa.String(length=512), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("collection_id", "item_id", name=op.f("pk_tombstones")),
    )
    op.create_index("ix_tombstones_collection_id_position", "tombstones", ["collection_id", "position"])
    op.create_table(
        "filter_deletes",
        sa.Column("collection_id", sa.String(length=36), nullable=False),
        sa.Column("accepted", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("filter", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("collection_id", "accepted", name=op.f("pk_filter_deletes")),
    )


def downgrade() -> None:
    op.drop_table("filter_deletes")
    op.drop_table("tombstones")
    op.drop_column("items", "position")
    op.drop_index("ix_jobs_tenant_collection_accepted", "jobs")
    op.drop_table("accepted_changes")
    op.drop_column("jobs", "accepted")
