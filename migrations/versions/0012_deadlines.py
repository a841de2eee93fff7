"""How long jobs may run, beside when they must have ended

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deadline_s", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("active_deadline_s", sa.Double(), nullable=True))
    op.execute("UPDATE jobs SET deadline_s = deadline_at - created_at WHERE deadline_at IS NOT NULL")


def downgrade() -> None:
    op.drop_column("jobs", "active_deadline_s")
    op.drop_column("jobs", "deadline_s")
