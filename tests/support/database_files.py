"""Files of SQLite databases: new ones at the newest schema, and what the files of a server contain.

A new one is copied from one that was migrated, which is faster than migrating each.
"""

import base64
import functools
import tempfile
from pathlib import Path

import sqlalchemy as sa

from signoff.stores.migrations import migrate_schema
from support.compiled_statements import share_compiled_statements

share_compiled_statements()


def make_file(path: Path) -> None:
    """Create a SQLite database at `path`, unless there is one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty())


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.db")
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.begin() as conn:
            migrate_schema(conn)
        engine.dispose()
        return path.read_bytes()


def is_in_clear(secret: str, folder: Path) -> bool:
    """Return True if the database in this folder contains a text as it is, or in Base64, as columns with JSON would."""
    data = b"".join(path.read_bytes() for path in folder.glob("signoff.db*") if path.is_file())
    assert b"CREATE TABLE" in data
    return any(spelling in data for spelling in spellings(secret))


def spellings(text: str) -> list[bytes]:
    """Return a text as it is, and as Base64 has it after 0, 1 and 2 other bytes."""
    return [text.encode(), *(_base64_of(text, offset) for offset in range(3))]


def _base64_of(secret: str, offset: int) -> bytes:
    """Return the characters that Base64 has for a text after `offset` other bytes, whatever comes before and after."""
    encoded = base64.b64encode(b"\0" * offset + secret.encode() + b"\0\0\0")
    return encoded[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]
