"""Turns of queued chunks, and how much waits of each key and tenant

What is queued already has turn 0 and goes first. An index that served the old order goes; those of the new one hold only
what is queued.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_QUEUED: dict[str, Any] = {f"{dialect}_where": sa.text("state = 'queued'") for dialect in ("sqlite", "postgresql")}


def upgrade() -> None:
    # With defaults that stay: so rows of processes that do not know of turns yet are the first to go.
    tenant = sa.Column("tenant", sa.String(length=64), server_default=sa.text("'default'"), nullable=False)
    op.add_column("chunks", tenant)
    op.add_column("chunks", sa.Column("turn", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.execute(
        "UPDATE chunks SET tenant = (SELECT tenant FROM jobs WHERE jobs.id = chunks.job_id) "
        "WHERE job_id IN (SELECT id FROM jobs WHERE tenant <> 'default')"
    )
    op.create_index("ix_chunks_queue_turn", "chunks", ["queue", "turn", "job_id", "number"], **_QUEUED)
    op.create_index("ix_chunks_queue_tenant_turn", "chunks", ["queue", "tenant", "turn"], **_QUEUED)
    op.drop_index("ix_chunks_state_queue_run_at", "chunks")
    op.create_index("ix_embeddings_created_at", "embeddings", ["created_at"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("queued_items", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("queued_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", name=op.f("pk_usage")),
    )
    op.execute(
        "INSERT INTO usage (tenant, key_id, queued_items) "
        "SELECT tenant, coalesce(key_id, ''), sum(total - succeeded - failed) FROM jobs "
        "WHERE status IN ('queued', 'running') GROUP BY tenant, coalesce(key_id, '')"
    )


def downgrade() -> None:
    op.drop_table("usage")
    op.drop_index("ix_embeddings_created_at", "embeddings")
    op.create_index("ix_chunks_state_queue_run_at", "chunks", ["state", "queue", "run_at"])
    op.drop_index("ix_chunks_queue_tenant_turn", "chunks")
    op.drop_index("ix_chunks_queue_turn", "chunks")
    for table, column in (("jobs", "size_bytes"), ("chunks", "turn"), ("chunks", "tenant")):
        op.drop_column(table, column)
