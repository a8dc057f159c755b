"""Migrations of the database schema, and the functions that apply and check them."""

import functools
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from signoff.errors import SchemaOutdated


def migrate_schema(conn: Connection, revision: str = "head") -> None:
    """Migrate the schema to the newest revision, or to an older one, in the transaction of `conn`."""
    if revision == "head" and current(conn) == _newest():
        return
    config = _config()
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


def check_schema(conn: Connection) -> None:
    """Raise SchemaOutdated, with the command that helps, unless the schema has the newest revision."""
    revision = current(conn)
    if revision != _newest():
        raise SchemaOutdated(
            f"The schema has revision {revision}; this version needs {_newest()}. Run: signoff migrate"
        )


def current(conn: Connection) -> str | None:
    """Return the revision of the database's schema; None if the database is empty."""
    return MigrationContext.configure(conn).get_current_revision()


def is_known(revision: str) -> bool:
    """Return True if this version of Signoff knows the revision, so that it can migrate from there."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


@functools.cache
def _newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
