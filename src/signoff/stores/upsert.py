"""Inserts that say what happens to rows that exist, in the dialect of the database."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert_into(table: sa.Table, dialect: str) -> Any:
    """Return an `Insert` of SQLAlchemy for `sqlite` or `postgresql`, which has `on_conflict_do_update` and its like."""
    return _INSERTS[dialect](table)
