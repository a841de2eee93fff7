"""Tenants: whose a job, a collection and an upload are; API keys; the audit log

What was there before is the default tenant's. Pictures and manifests lie in the blob store, where a migration does not
reach; the default tenant gets its row of ``uploads`` for one of them when it first names it, if it was stored before
``tenants`` says that the default tenant came to be (`revln.db.uploads.uploads`).

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def _tenant() -> sa.Column[str]:
    # With a default that stays: rows of processes that do not know of tenants yet are the default one's.
    return sa.Column("tenant", sa.String(length=64), server_default=sa.text("'default'"), nullable=False)


def upgrade() -> None:
    # Not in batch mode: that makes the table anew on SQLite, and dropping the old one would take every log with it.
    op.add_column("jobs", _tenant())
    op.add_column("jobs", sa.Column("key_id", sa.String(length=36), nullable=True))
    op.add_column("collections", _tenant())
    op.create_index("uq_jobs_tenant_idempotency_key", "jobs", ["tenant", "idempotency_key"], unique=True)
    op.create_index("ix_jobs_tenant_created_at_id", "jobs", ["tenant", "created_at", "id"])
    op.create_index("uq_collections_tenant_name", "collections", ["tenant", "name"], unique=True)
    op.drop_index("uq_jobs_idempotency_key", "jobs")
    op.drop_index("ix_jobs_created_at_id", "jobs")
    op.drop_index("uq_collections_name", "collections")
    _create_tables()
    tenants = sa.table("tenants", sa.column("name"), sa.column("created_at"))
    now = sa.text(_NOW[op.get_bind().dialect.name])
    op.execute(sa.insert(tenants).values(name="default", created_at=now))


def _create_tables() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenants")),
    )
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "sha256", "kind", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_kind_sha256", "uploads", ["kind", "sha256"])
    op.create_index("ix_uploads_last_used_at", "uploads", ["last_used_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", _JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.Column("max_queued_items", sa.BigInteger(), nullable=True),
        sa.Column("max_queued_bytes", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant", "id"])
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=640), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_tenant_id", "audit", ["tenant", "id"])
    op.create_index("ix_audit_created_at", "audit", ["created_at"])


def downgrade() -> None:
    # Without the column, what other tenants have would be everybody's.
    op.execute("DELETE FROM jobs WHERE tenant <> 'default'")
    op.execute("DELETE FROM collections WHERE tenant <> 'default'")
    for table in ("audit", "api_keys", "uploads", "tenants"):
        op.drop_table(table)
    op.create_index("uq_jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index("uq_collections_name", "collections", ["name"], unique=True)
    op.drop_index("uq_collections_tenant_name", "collections")
    op.drop_index("ix_jobs_tenant_created_at_id", "jobs")
    op.drop_index("uq_jobs_tenant_idempotency_key", "jobs")
    for table, column in (("collections", "tenant"), ("jobs", "key_id"), ("jobs", "tenant")):
        op.drop_column(table, column)
