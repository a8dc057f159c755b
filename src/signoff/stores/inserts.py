"""Insertion of whole rows by statements of the driver. SQLAlchemy processes each value, which doubles the cost."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Dialect, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite

from signoff.stores.json_column import JsonColumn

MAX_ROWS_PER_STATEMENT = 64
_VALUES = re.compile(r"VALUES (\([?, ]*\))")
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert_into(table: Table, dialect: str) -> Any:
    """Return an `Insert` of SQLAlchemy for `sqlite` or `postgresql`, which has `on_conflict_do_update` and its like."""
    return _INSERTS[dialect](table)


@lru_cache(maxsize=64)
def insert_statement(table: Table, dialect: Dialect) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the statement that inserts a row, its columns in order, and those whose values are JSON."""
    statement = sa.insert(table).values({column.name: bindparam(column.name) for column in table.c})
    compiled = statement.compile(dialect=dialect)
    names = tuple(compiled.positiontup or ())
    return str(compiled), names, tuple(name for name in names if isinstance(table.c[name].type, JsonColumn))


@lru_cache(maxsize=64)
def upsert_statement(table: Table, dialect: Dialect) -> tuple[str, tuple[str, ...]]:
    """Return the statement that inserts a row or updates the one with its `key`, and its columns in order.

    Columns that are marked as sums are added to those of the row; if the table has none, all are replaced.
    """
    statement = insert_into(table, dialect.name).values({column.name: bindparam(column.name) for column in table.c})
    new = statement.excluded
    sums = {column.name: column + new[column.name] for column in table.c if column.info.get("sum")}
    changes = sums or {column.name: new[column.name] for column in table.c if column.name != "key"}
    compiled = statement.on_conflict_do_update(index_elements=["key"], set_=changes).compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup or ())


def insert_rows(conn: Connection, text: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Execute one of the statements above for all rows.

    SQLite inserts many rows with each statement: its driver lets go of the interpreter at each statement, and then
    waits for it while the event loop is busy.
    """
    if conn.dialect.name != "sqlite":
        conn.exec_driver_sql(text, list(rows))
        return
    before, values, after = _VALUES.split(text, maxsplit=1)
    start = 0
    while start < len(rows):
        count = min(MAX_ROWS_PER_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)  # few different statements
        block = rows[start : start + count]
        conn.exec_driver_sql(f"{before}VALUES {', '.join([values] * count)}{after}", tuple(chain.from_iterable(block)))
        start += count
