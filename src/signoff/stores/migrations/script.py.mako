"""${message}.

It expands the schema: code of the revision before works with it, too; see docs/decisions/050. A migration that does not
needs a line in `_CONTRACTIONS`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}
