"""New SQLite databases at the newest schema, copied from one that was migrated, which is faster than migrating each."""

import functools
import tempfile
from pathlib import Path

import sqlalchemy as sa

from signoff.stores.migrations import migrate_schema


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
