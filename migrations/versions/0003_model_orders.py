"""Orders to load and unload models

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_orders",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("wanted", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("placed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_orders")),
    )


def downgrade() -> None:
    op.drop_table("model_orders")
