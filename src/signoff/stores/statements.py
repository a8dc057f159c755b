"""Statements that go to the driver directly: SQLAlchemy's processing of each value would double their cost."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Dialect, Table, bindparam
from sqlalchemy.dialects import sqlite
from sqlalchemy.util import await_only

from signoff.stores.json_column import JsonColumn

MAX_ROWS_PER_STATEMENT = 64
_VALUES = re.compile(r"VALUES (\([?, ]*\))")


class PreparedStatement(NamedTuple):
    """A statement as its dialect writes it."""

    text: str
    names: tuple[str, ...]
    """Names of its parameters, in order."""
    defaults: Mapping[str, Any]
    """Values of parameters that the statement has itself."""
    json_names: tuple[str, ...]
    """Names of the parameters whose values are JSON."""


def execute_prepared(
    conn: Connection, statement: sa.UpdateBase | sa.Select[Any], parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Execute a statement that is built once and used often, and return its rows as the driver gives them.

    Values of JSON columns in the rows are bytes. Raises DBAPIError, or exceptions of the driver on SQLite.
    """
    return execute_each(conn, statement, [parameters])


def execute_each(
    conn: Connection, statement: sa.UpdateBase | sa.Select[Any], parameters: Sequence[Mapping[str, Any]]
) -> Sequence[Any]:
    """Execute a statement for each of `parameters`, in order, and return all rows; see `execute_prepared`.

    PostgreSQL gets all of them in one message.
    """
    prepared = _prepare(statement, conn.dialect)
    ordered = [_ordered(prepared, each) for each in parameters]
    if conn.dialect.name != "sqlite":
        return _fetch_from_postgres(conn, prepared.text, ordered)
    connection: Any = conn.connection.driver_connection
    return [row for each in ordered for row in connection.execute(prepared.text, each).fetchall()]


def _ordered(prepared: PreparedStatement, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values of the parameters of a statement in their order, JSON as bytes."""
    values = {**prepared.defaults, **parameters}
    for name in prepared.json_names:
        if values[name] is not None:
            values[name] = msgspec.json.encode(values[name])
    return tuple([values[name] for name in prepared.names])


def _fetch_from_postgres(conn: Connection, text: str, parameters: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
    """Execute a statement for each of `parameters`, without SQLAlchemy. Raises what SQLAlchemy raises."""
    cursor: Any = conn.connection.cursor()
    try:
        if len(parameters) == 1:
            cursor.execute(text, parameters[0])
            return cursor.fetchall()
        connection: Any = conn.connection.driver_connection
        try:
            return await_only(connection.fetchmany(text, parameters))
        except Exception as error:
            cursor._handle_exception(error)  # noqa: SLF001
            raise
    except BaseException as error:  # noqa: BLE001 -- it is raised again
        # There is no public way to what SQLAlchemy does then: it calls listeners, and replaces lost connections.
        conn._handle_dbapi_exception(error, text, None, cursor, None)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


@lru_cache(maxsize=256)
def _prepare(statement: sa.UpdateBase | sa.Select[Any], dialect: Dialect) -> PreparedStatement:
    compiled = statement.compile(dialect=dialect)
    names = tuple(compiled.positiontup or ())
    json_names = tuple(name for name in names if isinstance(compiled.binds[name].type, JsonColumn))
    defaults = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
    return PreparedStatement(str(compiled), names, defaults, json_names)


def insert_into(table: Table, dialect: str) -> Any:
    """Return an `Insert` of SQLAlchemy for `sqlite` or `postgresql`, which has `on_conflict_do_update` and its like."""
    if dialect == "postgresql":  # imported only where it is used, because that takes a tenth of a second
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    return sqlite.insert(table)


@lru_cache(maxsize=64)
def insert_statement(
    table: Table, dialect: Dialect, *, if_missing: bool = False
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the statement that inserts a row, its columns in order, and those whose values are JSON.

    With `if_missing`, it does nothing if the table has a row with the primary key.
    """
    insert = insert_into(table, dialect.name).on_conflict_do_nothing() if if_missing else sa.insert(table)
    statement = insert.values({column.name: bindparam(column.name) for column in table.c})
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

    SQLite inserts many rows with each statement: its driver releases the interpreter lock for each one, and then waits
    for it while the event loop is busy.
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
