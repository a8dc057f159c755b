"""Backup and restore of all tables, also from SQLite to PostgreSQL and back."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.sql.expression import TableClause
from sqlalchemy.types import TypeDecorator

from signoff import __version__
from signoff.core.wire import format_time
from signoff.stores.archive import (
    FORMAT,
    KEY,
    MANIFEST,
    UNREADABLE,
    ArchiveWriter,
    BadBackup,
    Manifest,
    Member,
    TableSummary,
    members,
)
from signoff.stores.clock import now_us
from signoff.stores.migrations import MIN_COMPATIBLE, check_schema, current_revision, is_known, migrate_schema
from signoff.stores.schema import metadata
from signoff.stores.statements import insert_rows, insert_statement

FETCHED_ROWS = 50  # few, because one row can be large
CHUNK_BYTES = 4 * 1024 * 1024
MAX_BATCH_ROWS = 1000
MAX_ROW_BYTES = 1024**3  # neither database stores a larger one
LENGTH_BYTES = 4


def save(conn: Connection, archive: ArchiveWriter, *, key: bytes | None) -> Manifest:
    """Write all tables as `conn` sees them, and `key` unless it is None, to an archive; return its manifest so far.

    Raises SchemaOutdated.
    """
    check_schema(conn, must_be_own=True)
    now = conn.execute(sa.select(now_us())).scalar_one()
    if key is not None:
        archive.add(KEY, key)
    return Manifest(
        format=FORMAT,
        signoff=__version__,
        revision=current_revision(conn) or "",
        made_at=format_time(now),
        tables={str(table.name): _save_table(conn, table, archive) for table in metadata.sorted_tables},
        members=archive.members,
    )


def _save_table(conn: Connection, table: sa.Table, archive: ArchiveWriter) -> TableSummary:
    """Write a table as files of a few megabytes. Each row is a MessagePack array after its length in four bytes."""
    stored, chunk, count, rows = _with_stored_types(table), bytearray(), 0, 0
    for row in conn.execute(sa.select(stored), execution_options={"yield_per": FETCHED_ROWS}):
        packed = msgspec.msgpack.encode(tuple(row))
        chunk += len(packed).to_bytes(LENGTH_BYTES, "big") + packed
        rows += 1
        if len(chunk) >= CHUNK_BYTES:
            archive.add(f"{table.name}/{count:06}", chunk)
            chunk, count = bytearray(), count + 1
    if chunk:
        archive.add(f"{table.name}/{count:06}", chunk)
    return TableSummary(tuple(str(column.name) for column in table.c), rows)


def fill(conn: Connection, path: Path, manifest: Manifest, *, at_end: Callable[[], None]) -> None:
    """Fill an empty database from a backup that was checked, migrate it to the newest schema, and call `at_end`.

    The caller runs it in one transaction. Raises BadBackup.
    """
    if not is_known(manifest.revision):
        raise BadBackup(f"{path} has the unknown schema revision {manifest.revision!r}; use the version that wrote it.")
    migrate_schema(conn, manifest.revision)
    tables = _reflect_tables(conn)
    _check_target(conn, tables, manifest)
    versions = tables["versions"]
    newest = sa.select(sa.func.max(versions.c.version)).where(versions.c.topic != MIN_COMPATIBLE)
    version = conn.execute(newest).scalar() or 0
    conn.execute(sa.delete(versions))  # the rows that the migrations have inserted
    _insert_rows(conn, path, manifest, tables)
    _advance_sequences(conn, tables)
    _increase_versions(conn, versions, version)
    migrate_schema(conn)
    at_end()


def _reflect_tables(conn: Connection) -> dict[str, sa.Table]:
    """Return the tables of the database by name. At the revision of an older backup they differ from `schema.py`."""
    reflected = sa.MetaData()
    with warnings.catch_warnings():  # the columns are what is read here
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index")
        reflected.reflect(conn)
    return {name: table for name, table in reflected.tables.items() if name != "alembic_version"}


def _check_target(conn: Connection, tables: dict[str, sa.Table], manifest: Manifest) -> None:
    """Raise BadBackup unless the database is empty, and has the revision and the tables of the backup."""
    if (revision := current_revision(conn)) != manifest.revision:
        raise BadBackup(f"The database has schema {revision}, the backup {manifest.revision}; use an empty database.")
    for name, table in tables.items():
        if name != "versions" and conn.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise BadBackup(f"The database is not empty: it contains {name}. Restore a backup into an empty database.")
    if {name: set(table.c.keys()) for name, table in tables.items()} != {
        name: set(summary.columns) for name, summary in manifest.tables.items()
    }:
        raise BadBackup(f"The backup does not have the tables and columns of its schema {manifest.revision}.")


def _insert_rows(conn: Connection, path: Path, manifest: Manifest, tables: dict[str, sa.Table]) -> None:
    rows = Counter[str]()
    for member in members(path):
        name = member.name.partition("/")[0]
        if name in tables:
            columns = manifest.tables[name].columns
            text, names, _ = insert_statement(tables[name], conn.dialect)
            in_order = itemgetter(*map(columns.index, names))  # each table has several columns
            for batch in _batches(member, _row_type(tables[name], columns)):
                insert_rows(conn, text, [in_order(row) for row in batch])
                rows[name] += len(batch)
        if member.name != MANIFEST and manifest.members.get(member.name) != member.digest():
            raise BadBackup(f"{path} changed while it was read; try again.")
    if {name: rows[name] for name in tables} != {name: summary.rows for name, summary in manifest.tables.items()}:
        raise BadBackup(f"{path} is damaged: its numbers of rows differ from its manifest; use another one.")


def _batches(member: Member, row_type: Any) -> Iterator[list[Any]]:
    """Decode the rows of a file, in batches of a few megabytes. Raises BadBackup."""
    decode = msgspec.msgpack.Decoder(row_type).decode
    batch, size_bytes = list[Any](), 0
    while member.left_bytes:
        length = int.from_bytes(member.read(LENGTH_BYTES), "big")
        try:
            if length > MAX_ROW_BYTES:
                raise BadBackup(f"A row of {member.name} is larger than the limit of {MAX_ROW_BYTES} bytes.")
            batch.append(decode(member.read(length)))
        except UNREADABLE as error:
            raise BadBackup(f"A row of {member.name} cannot be decoded: {error}.") from None
        size_bytes += length
        if len(batch) == MAX_BATCH_ROWS or size_bytes >= CHUNK_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _row_type(table: sa.Table, columns: tuple[str, ...]) -> Any:
    """Return the type of a row: a tuple of the columns' types. It bounds the memory that a decoded row can take."""
    types = [
        table.c[name].type.python_type | None if table.c[name].nullable else table.c[name].type.python_type
        for name in columns
    ]
    return tuple[tuple(types)]  # pyright: ignore[reportInvalidTypeArguments]


def _advance_sequences(conn: Connection, tables: dict[str, sa.Table]) -> None:
    """Set PostgreSQL's sequences to the last restored ids. SQLite takes the largest id by itself."""
    if conn.dialect.name != "postgresql":
        return
    from sqlalchemy.dialects.postgresql import REGCLASS

    for table in tables.values():
        for column in table.primary_key:
            query = sa.func.pg_get_serial_sequence(f'"{table.name}"', column.name)
            if (sequence := conn.execute(sa.select(query)).scalar()) is not None:
                name = sa.cast(sa.cast(sequence, sa.Text), REGCLASS)
                conn.execute(sa.select(sa.func.setval(name, sa.func.max(column))))


def _increase_versions(conn: Connection, versions: sa.Table, before: int) -> None:
    """Increase all versions beyond those of the empty database, so that other processes drop their copies."""
    is_version = versions.c.topic != MIN_COMPATIBLE
    conn.execute(sa.update(versions).where(is_version).values(version=versions.c.version + before + 1))


def _with_stored_types(table: sa.Table) -> TableClause:
    """Return the table with the types that the database stores, so that JSON columns are copied as bytes."""
    return sa.table(table.name, *[sa.column(column.name, _stored_type(column.type)) for column in table.c])


def _stored_type(column_type: Any) -> Any:
    return column_type.impl_instance if isinstance(column_type, TypeDecorator) else column_type
