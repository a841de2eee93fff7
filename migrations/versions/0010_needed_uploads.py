"""Which uploads a job needs, and which pictures the items of collections have

What uploads there are count as used now. Of jobs that are there, the manifest and what their bodies name are noted.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_PICTURED: dict[str, Any] = {
    f"{dialect}_where": sa.text("image_sha256 IS NOT NULL") for dialect in ("sqlite", "postgresql")
}
_NOW = {"sqlite": "(julianday('now') - 2440587.5) * 86400.0", "postgresql": "extract(epoch from clock_timestamp())"}
# Wherever in an item or a query the word stands; what is no upload of the tenant's is left out.
_NAMED = {
    "sqlite": "SELECT job_id, value AS sha256 FROM chunks, json_tree(chunks.items) WHERE key = 'sha256'",
    "postgresql": "SELECT job_id, found #>> '{}' AS sha256 FROM chunks, "
    "LATERAL jsonb_path_query(chunks.items, '$.**.sha256') AS found",
}
_MANIFEST = {"sqlite": "json_extract(input, '$.manifest.sha256')", "postgresql": "input #>> '{manifest,sha256}'"}
_NOTE = (
    "INSERT INTO job_uploads (job_id, kind, sha256) SELECT DISTINCT jobs.id, uploads.kind, uploads.sha256 FROM {named} "
    "JOIN jobs ON jobs.id = named.job_id "
    "JOIN uploads ON uploads.tenant = jobs.tenant AND uploads.kind = '{kind}' AND uploads.sha256 = named.sha256"
)


def upgrade() -> None:
    op.create_table(
        "job_uploads",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_uploads_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "kind", "sha256", name=op.f("pk_job_uploads")),
    )
    op.create_index("ix_job_uploads_sha256", "job_uploads", ["sha256"])
    op.create_index("ix_vectors_image_sha256", "vectors", ["image_sha256"], **_PICTURED)
    dialect = op.get_context().dialect.name
    op.execute(f"UPDATE uploads SET last_used_at = {_NOW[dialect]}")  # noqa: S608
    manifests = f"(SELECT id AS job_id, {_MANIFEST[dialect]} AS sha256 FROM jobs) AS named"  # noqa: S608
    op.execute(_NOTE.format(named=manifests, kind="manifest"))
    op.execute(_NOTE.format(named=f"({_NAMED[dialect]}) AS named", kind="image"))


def downgrade() -> None:
    op.drop_index("ix_vectors_image_sha256", "vectors")
    op.drop_table("job_uploads")
