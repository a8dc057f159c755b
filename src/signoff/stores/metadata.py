"""The metadata that all tables share, and the form of partial indexes."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

metadata = sa.MetaData()


def partial_index(
    name: str, *columns: sa.ColumnElement[Any], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    """Add an index of the rows for which `where` holds."""
    index = sa.Index(name, *columns, unique=unique, sqlite_where=where)

    def use_in_postgresql(_target: object, connection: sa.Connection, **_: object) -> None:
        if connection.dialect.name == "postgresql":
            index.dialect_options["postgresql"]["where"] = where

    # With `postgresql_where`, each process would import that dialect, which takes a tenth of a second.
    event.listen(metadata, "before_create", use_in_postgresql)
