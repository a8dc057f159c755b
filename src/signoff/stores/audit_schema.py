"""The table of the audit log. Triggers of the migration that creates it refuse updates and deletions."""

from typing import Any

import sqlalchemy as sa

from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("client", sa.Text),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("before", JsonColumn(dict[str, Any])),
    sa.Column("after", JsonColumn(dict[str, Any])),
)
sa.Index("audit_actor", audit.c.actor, audit.c.id)
sa.Index("audit_action", audit.c.action, audit.c.id)
sa.Index("audit_subject", audit.c.subject, audit.c.id)
