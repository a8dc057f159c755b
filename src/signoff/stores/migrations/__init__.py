"""The schema's history, and what is done with it: bring up to date, and check."""

from __future__ import annotations

import functools
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from signoff.errors import SchemaOutdated


def migrate_schema(conn: Connection, revision: str = "head") -> None:
    """Brings the schema up to date, or up to an older revision, inside the transaction of `conn`."""
    if revision == "head" and current(conn) == _newest():
        return
    config = _config()
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


def check_schema(conn: Connection) -> None:
    """Raises SchemaOutdated, naming the command that helps, if the schema is not the newest."""
    found = current(conn)
    if found != _newest():
        raise SchemaOutdated(
            f"The database is at revision {found}, this version needs {_newest()}. Run: signoff migrate"
        )


def current(conn: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    return MigrationContext.configure(conn).get_current_revision()


def is_known(revision: str) -> bool:
    """Whether this version has, or once had, this schema."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


@functools.cache
def _newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
