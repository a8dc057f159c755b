"""The metadata that all tables share, and the form of partial indexes."""

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


def partial_index(
    name: str, *columns: sa.ColumnElement[Any], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    """Add an index of the rows for which `where` holds."""
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)
