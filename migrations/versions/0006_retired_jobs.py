"""Retired jobs: gone for everybody, their rows removed step by step

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.create_index("ix_jobs_deleted_at", "jobs", ["deleted_at"])


def downgrade() -> None:
    # Without this column a retired job would be seen again.
    op.execute("DELETE FROM jobs WHERE deleted_at IS NOT NULL")
    op.drop_index("ix_jobs_deleted_at", "jobs")
    op.drop_column("jobs", "deleted_at")
