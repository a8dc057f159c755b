"""All tables into a backup, and from a backup into an empty database, whichever of the two databases it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import REGCLASS
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
from signoff.stores.migrations import check_schema, current, is_known, migrate_schema
from signoff.stores.schema import metadata

FETCHED_ROWS = 50  # a row can be large
PIECE_BYTES = 4 * 1024 * 1024
PIECE_ROWS = 1000
ROW_LIMIT_BYTES = 1024**3  # neither database takes more
LENGTH_BYTES = 4


def save(conn: Connection, draft: ArchiveWriter, *, key: bytes | None) -> Manifest:
    """Writes everything that `conn` sees, and the vault's key if it is given. Raises SchemaOutdated."""
    check_schema(conn)
    made_at = conn.execute(sa.select(now_us())).scalar_one()
    if key is not None:
        draft.add(KEY, key)
    manifest = Manifest(
        format=FORMAT,
        signoff=__version__,
        revision=current(conn) or "",
        made_at=format_time(made_at),
        tables={str(table.name): _save(conn, table, draft) for table in metadata.sorted_tables},
        members=draft.members,
    )
    draft.finish(manifest)
    return manifest


def _save(conn: Connection, table: sa.Table, draft: ArchiveWriter) -> TableSummary:
    """One table, as pieces of a few megabytes: each row an array in MessagePack, after its length."""
    plain, piece, pieces, rows = _plain(table), bytearray(), 0, 0
    for row in conn.execute(sa.select(plain), execution_options={"yield_per": FETCHED_ROWS}):
        packed = msgspec.msgpack.encode(tuple(row))
        piece += len(packed).to_bytes(LENGTH_BYTES, "big") + packed
        rows += 1
        if len(piece) >= PIECE_BYTES:
            draft.add(f"{table.name}/{pieces:06}", piece)
            piece, pieces = bytearray(), pieces + 1
    if piece:
        draft.add(f"{table.name}/{pieces:06}", piece)
    return TableSummary(tuple(str(column.name) for column in table.c), rows)


def fill(conn: Connection, path: Path, manifest: Manifest, *, at_end: Callable[[], None]) -> None:
    """Fills an empty database from a backup that was checked, brings its schema up to date, and calls `at_end`.

    All of it belongs into one transaction. Raises BadBackup.
    """
    if not is_known(manifest.revision):
        raise BadBackup(f"{path} has the schema {manifest.revision!r}, which a newer Signoff has made.")
    migrate_schema(conn, manifest.revision)
    tables = _tables(conn)
    _refuse_if_used(conn, tables, manifest)
    version = conn.execute(sa.select(sa.func.max(tables["versions"].c.version))).scalar() or 0
    conn.execute(sa.delete(tables["versions"]))  # what the migrations have put there
    _fill(conn, path, manifest, tables)
    _count_ids_on(conn, tables)
    _tell_of_it(conn, tables["versions"], version)
    migrate_schema(conn)
    at_end()


def _tables(conn: Connection) -> dict[str, sa.Table]:
    """The tables that there are: an older backup has fewer than `schema.py`."""
    there = sa.MetaData()
    there.reflect(conn)
    return {name: table for name, table in there.tables.items() if name != "alembic_version"}


def _refuse_if_used(conn: Connection, tables: dict[str, sa.Table], manifest: Manifest) -> None:
    if (revision := current(conn)) != manifest.revision:
        raise BadBackup(f"The database has the schema {revision}, the backup {manifest.revision}: take an empty one.")
    for name, table in tables.items():
        if name != "versions" and conn.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise BadBackup(f"The database is in use: it holds {name}. A backup is restored into an empty one.")
    if {name: set(table.c.keys()) for name, table in tables.items()} != {
        name: set(held.columns) for name, held in manifest.tables.items()
    }:
        raise BadBackup(f"The tables of the backup are not those of the schema {manifest.revision}.")


def _fill(conn: Connection, path: Path, manifest: Manifest, tables: dict[str, sa.Table]) -> None:
    rows = Counter[str]()
    for member in members(path):
        name = member.name.partition("/")[0]
        if name in tables:
            plain, columns = _plain(tables[name]), manifest.tables[name].columns
            for batch in _batches(member, _row_type(tables[name], columns)):
                conn.execute(sa.insert(plain), [dict(zip(columns, row, strict=True)) for row in batch])
                rows[name] += len(batch)
        if member.name != MANIFEST and manifest.members.get(member.name) != member.digest():
            raise BadBackup(f"{path} has changed while it was read.")
    if {name: rows[name] for name in tables} != {name: held.rows for name, held in manifest.tables.items()}:
        raise BadBackup(f"{path} does not hold the rows that it says it holds.")


def _batches(member: Member, row_type: Any) -> Iterator[list[Any]]:
    """The rows of a piece, a few megabytes at a time."""
    decode = msgspec.msgpack.Decoder(row_type).decode
    batch, size_bytes = list[Any](), 0
    while member.left_bytes:
        length = int.from_bytes(member.read(LENGTH_BYTES), "big")
        try:
            if length > ROW_LIMIT_BYTES:
                raise BadBackup(f"A row of {member.name} is larger than any database takes.")
            batch.append(decode(member.read(length)))
        except UNREADABLE as error:
            raise BadBackup(f"A row of {member.name} cannot be read: {error}.") from None
        size_bytes += length
        if len(batch) == PIECE_ROWS or size_bytes >= PIECE_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _row_type(table: sa.Table, columns: tuple[str, ...]) -> Any:
    """What a row may be: so many values, of these types. It bounds what a row can become in memory."""
    types = [
        table.c[name].type.python_type | None if table.c[name].nullable else table.c[name].type.python_type
        for name in columns
    ]
    return tuple[tuple(types)]  # pyright: ignore[reportInvalidTypeArguments]


def _count_ids_on(conn: Connection, tables: dict[str, sa.Table]) -> None:
    """The next id of PostgreSQL's own counting comes after the last one that was restored; SQLite looks by itself."""
    if conn.dialect.name != "postgresql":
        return
    for table in tables.values():
        for column in table.primary_key:
            named = sa.func.pg_get_serial_sequence(f'"{table.name}"', column.name)
            if (sequence := conn.execute(sa.select(named)).scalar()) is not None:
                name = sa.cast(sa.cast(sequence, sa.Text), REGCLASS)
                conn.execute(sa.select(sa.func.setval(name, sa.func.max(column))))


def _tell_of_it(conn: Connection, versions: sa.Table, before: int) -> None:
    """No process that has looked at the empty database has seen these versions."""
    conn.execute(sa.update(versions).values(version=versions.c.version + before + 1))


def _plain(table: sa.Table) -> TableClause:
    """The table with its columns as they are stored: packed values stay as they are."""
    return sa.table(table.name, *[sa.column(column.name, _stored(column.type)) for column in table.c])


def _stored(kind: Any) -> Any:
    return kind.impl_instance if isinstance(kind, TypeDecorator) else kind
