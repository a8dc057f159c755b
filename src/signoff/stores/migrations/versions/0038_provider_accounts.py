"""Add accounts at OpenID Connect providers, each bound to one user."""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    """Create the table; code of the release before does not use it."""
    op.create_table(
        "provider_accounts",
        sa.Column("issuer", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("bound_at", sa.BigInteger, nullable=False),
    )
    op.create_index("provider_accounts_of_user", "provider_accounts", ["user_id", "issuer"], unique=True)
