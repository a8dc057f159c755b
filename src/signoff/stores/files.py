"""Files of users, in SQL."""

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from signoff.core.batch import LISTED_PURPOSES, FileFilter, StoredFile
from signoff.core.filters import Page
from signoff.core.times import DAY_US, SECOND_US
from signoff.stores.batches_schema import IS_UNENDED, batches, files
from signoff.stores.database import Database
from signoff.stores.schema import deliveries
from signoff.stores.transaction import Tx

UPLOAD_US = DAY_US
_NAMES = StoredFile.__struct_fields__
_COLUMNS = tuple(files.c[name] for name in _NAMES)


class SqlFiles:
    """Files in a SQL database; see `batches.Files`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, file: StoredFile) -> None:
        """See `batches.Files`."""
        await self._database.write(lambda tx: insert_file(tx, file))

    async def complete(self, file: StoredFile, *, lifetime_seconds: float | None) -> StoredFile | None:
        """See `batches.Files`."""
        lifetime = None if lifetime_seconds is None else round(lifetime_seconds * SECOND_US)
        changes: dict[str, Any] = {
            "filename": file.filename,
            "purpose": file.purpose,
            "size_bytes": file.size_bytes,
            "expires_at": None if lifetime is None else files.c.created_at + lifetime,
        }
        is_open = (files.c.id == file.id) & files.c.size_bytes.is_(None) & files.c.deleted_at.is_(None)
        update = sa.update(files).where(is_open).values(changes).returning(*_COLUMNS)
        row = await self._database.write(lambda tx: tx.conn.execute(update).one_or_none())
        return None if row is None else _file_of(row)

    async def get(self, file_id: str) -> StoredFile | None:
        """See `batches.Files`."""

        def read(conn: Connection, now: Any) -> StoredFile | None:
            row = conn.execute(sa.select(*_COLUMNS).where(files.c.id == file_id, *_exists(now()))).one_or_none()
            return None if row is None else _file_of(row)

        return await self._database.read(read)

    async def page(self, filters: FileFilter) -> Page[StoredFile]:
        """See `batches.Files`."""
        return await self._database.read(lambda conn, now: _read_page(conn, filters, now()))

    async def delete(self, file_id: str) -> bool:
        """See `batches.Files`."""

        def delete(tx: Tx) -> bool:
            update = sa.update(files).where(files.c.id == file_id, *_exists(tx.now)).values(deleted_at=tx.now)
            return tx.conn.execute(update).rowcount == 1

        return await self._database.write(delete)

    async def stored_bytes(self, user_id: int) -> int:
        """See `batches.Files`."""
        query = sa.select(sa.func.coalesce(sa.func.sum(files.c.size_bytes), 0)).where(files.c.user_id == user_id)
        return await self._database.read(lambda conn, _: int(conn.execute(query).scalar_one()))

    async def garbage(self, limit: int, *, skip: Collection[str] = ()) -> list[StoredFile]:
        """See `batches.Files`."""
        return await self._database.read(lambda conn, now: _garbage(conn, now(), limit, skip))

    async def purge(self, file_ids: Sequence[str]) -> None:
        """See `batches.Files`."""
        delete = sa.delete(files).where(files.c.id.in_(file_ids))
        await self._database.write(lambda tx: tx.conn.execute(delete).rowcount)

    async def blobs(self) -> Sequence[str]:
        """Return the names of the blobs of all files that exist, for a backup."""

        def read(conn: Connection, now: Any) -> Sequence[str]:
            rows = conn.execute(sa.select(*_COLUMNS).where(files.c.size_bytes.is_not(None)).order_by(files.c.id))
            return [_file_of(row).blob for row in rows]

        return await self._database.read(read)

    async def erase(self, user_id: int) -> int:
        """See `batches.Files`."""
        return await self._database.write(lambda tx: _erase(tx, user_id))


def insert_file(tx: Tx, file: StoredFile, *, lifetime_seconds: float | None = None) -> None:
    """Insert the row of a file, which is created now."""
    expires_at = None if lifetime_seconds is None else tx.now + round(lifetime_seconds * SECOND_US)
    row = {name: getattr(file, name) for name in _NAMES} | {"created_at": tx.now, "expires_at": expires_at}
    tx.conn.execute(sa.insert(files), row)


def delete_files(tx: Tx, file_ids: Sequence[str]) -> None:
    """Delete files for their owners; their blobs are deleted afterwards."""
    if file_ids:
        condition = files.c.id.in_(file_ids) & files.c.deleted_at.is_(None)
        tx.conn.execute(sa.update(files).where(condition).values(deleted_at=tx.now))


def _exists(now: int) -> list[sa.ColumnElement[bool]]:
    is_unexpired = files.c.expires_at.is_(None) | (files.c.expires_at > now)
    return [files.c.deleted_at.is_(None), files.c.size_bytes.is_not(None), is_unexpired]


def _read_page(conn: Connection, filters: FileFilter, now: int) -> Page[StoredFile]:
    rows = conn.execute(_page_statement(filters, now)).all()
    return Page(map(_file_of, rows[: filters.limit]), may_continue=len(rows) > filters.limit)


def _page_statement(filters: FileFilter, now: int) -> sa.Select[Any]:
    """Select the files of a page, and one more if there is one."""
    purposes = LISTED_PURPOSES if filters.purpose is None else (filters.purpose,)
    query = sa.select(*_COLUMNS).where(files.c.user_id == filters.user_id, files.c.purpose.in_(purposes), *_exists(now))
    if filters.after_id is not None:
        query = query.where(files.c.id < filters.after_id if filters.newest_first else files.c.id > filters.after_id)
    return query.order_by(files.c.id.desc() if filters.newest_first else files.c.id).limit(filters.limit + 1)


def _garbage(conn: Connection, now: int, limit: int, skip: Collection[str]) -> list[StoredFile]:
    """Return files to purge: each condition has an index of its own."""
    is_read = sa.exists().where(batches.c.input_file_id == files.c.id, IS_UNENDED)
    conditions = (
        files.c.deleted_at.is_not(None),
        files.c.expires_at.is_not(None) & (files.c.expires_at <= now),
        files.c.size_bytes.is_(None) & (files.c.created_at < now - UPLOAD_US),
    )
    garbage = dict[str, StoredFile]()
    for condition in conditions:
        query = sa.select(*_COLUMNS).where(condition, ~is_read, files.c.id.not_in(skip)).limit(limit - len(garbage))
        garbage |= {row.id: _file_of(row) for row in conn.execute(query)}
    return list(garbage.values())


def _erase(tx: Tx, user_id: int) -> int:
    """Delete the files and batches of a user, and return the number of rows of files that are left."""
    ids = tx.conn.execute(sa.select(batches.c.id).where(batches.c.user_id == user_id)).scalars().all()
    if ids:
        tx.conn.execute(sa.delete(batches).where(batches.c.id.in_(ids)))
        tx.conn.execute(sa.delete(deliveries).where(deliveries.c.job_id.in_(ids)))
    own = (files.c.user_id == user_id) & files.c.deleted_at.is_(None)
    tx.conn.execute(sa.update(files).where(own).values(deleted_at=tx.now))
    return tx.conn.execute(sa.select(sa.func.count()).select_from(files).where(files.c.user_id == user_id)).scalar_one()


def _file_of(row: Row[Any]) -> StoredFile:
    return StoredFile(**dict(zip(_NAMES, row, strict=True)))
