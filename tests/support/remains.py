"""Remains of a text: every table and column of a database, and every file in a folder, in which it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from signoff.stores.sql import SqlStore
from support.database_files import spellings


async def columns_with(store: SqlStore, text: str) -> Mapping[str, int]:
    """Return the number of values that contain `text`, as it is or in Base64, by `table.column`.

    The tables are those of the database, not those that this code knows.
    """
    return await store._database.read(lambda conn, _: _columns_with(conn, text))


def files_with(folder: Path, text: str) -> list[Path]:
    """Return the files below `folder` that contain `text`, as it is or in Base64, except those of the database."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("signoff.db")]
    return [path for path in files if _contains(path.read_bytes(), text)]


def _columns_with(conn: sa.Connection, text: str) -> dict[str, int]:
    counts = dict[str, int]()
    for table in sa.inspect(conn).get_table_names():
        for row in conn.execute(sa.text(f'SELECT * FROM "{table}"')).mappings():
            for column, value in row.items():
                if _contains(bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode(), text):
                    counts[f"{table}.{column}"] = counts.get(f"{table}.{column}", 0) + 1
    return counts


def _contains(data: bytes, text: str) -> bool:
    return any(spelling in data for spelling in spellings(text))
