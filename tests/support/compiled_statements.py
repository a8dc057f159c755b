"""SQL statements that are compiled once for all databases that a process of the tests opens.

SQLAlchemy keeps compiled statements for each engine, which is right for a server. A test opens an engine or three, uses
each statement once or twice, and would spend a fifth of its CPU time on the compiler.
"""

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.util import LRUCache

CACHE: LRUCache[Any, Any] = LRUCache(10_000)
OPTIONS = ("server_version_info", "_json_serializer", "_json_deserializer")
"""Attributes in which dialects of one class can differ, as the product makes them."""


def share_compiled_statements() -> None:
    """Let all engines with equal dialects use the same compiled statements from their next connection on."""
    for dialect in (PGDialect_asyncpg, SQLiteDialect_pysqlite):
        dialect.__eq__ = _is_equal  # type: ignore[method-assign]
        dialect.__hash__ = _hash  # type: ignore[method-assign]
    event.listen(Engine, "engine_connect", _use_cache)


def _is_equal(one: Dialect, other: object) -> bool:
    return type(one) is type(other) and _options(one) == _options(other)


def _hash(dialect: Dialect) -> int:
    return hash((type(dialect), _options(dialect)))


def _options(dialect: object) -> tuple[object, ...]:
    return tuple(getattr(dialect, name, None) for name in OPTIONS)


def _use_cache(connection: Connection) -> None:
    connection.engine._compiled_cache = CACHE
