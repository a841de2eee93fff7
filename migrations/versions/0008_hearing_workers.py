"""Whether a worker hears: when its own message came back last, and whether it has a thread to hear with.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("heard_at", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("busy", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    for name in ("busy", "heard_at"):
        op.drop_column("workers", name)
