"""Tables of receipts and figures of reviews. Triggers of the migration refuse changes of receipts."""

import sqlalchemy as sa

from signoff.core.reviews.figures import FigureTotals
from signoff.stores.metadata import metadata

receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    sa.Column("job_id", sa.Text),
    sa.Column("round", sa.Integer),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("line", sa.LargeBinary, nullable=False),
    sa.Column("archived_until", sa.Integer, index=True),
)
sa.Index("receipts_by_job", receipts.c.job_id, receipts.c.seq)

# The newest key signs. Old ones keep their public key only.
receipt_keys = sa.Table(
    "receipt_keys",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

# Deleted together with the contents of their jobs.
receipt_salts = sa.Table(
    "receipt_salts",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
)

_ADDED: tuple[str, ...] = ("delivered", "planted", "caught", "own_approvals", "own_redos", "own_rejections")
# Servers of an earlier version do not write these sums.
_DEFAULTS: dict[str, str] = dict.fromkeys((*_ADDED, "other_approvals", "other_redos", "other_rejections"), "0")
review_hours = sa.Table(
    "review_hours",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("hour", sa.BigInteger, nullable=False, index=True),
    sa.Column("policy", sa.Text),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text),
    sa.Column("prompt_version", sa.Integer),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default=_DEFAULTS.get(name), info={"sum": True})
        for name in FigureTotals.__struct_fields__
    ),
)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requested_at", sa.BigInteger, nullable=False),
    sa.Column("finished_at", sa.BigInteger),
)
