"""The schema's history, and the two things that are done with it: bring up to date, and check."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from signoff.errors import SchemaOutdated


def migrate_schema(conn: Connection) -> None:
    """Brings the schema up to date, inside the transaction of `conn`."""
    config = _config()
    config.attributes["connection"] = conn
    command.upgrade(config, "head")


def check_schema(conn: Connection) -> None:
    """Raises SchemaOutdated, naming the command that helps, if the schema is not the newest."""
    current = MigrationContext.configure(conn).get_current_revision()
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if current != newest:
        raise SchemaOutdated(
            f"The database is at revision {current}, this version needs {newest}. Run: signoff migrate"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
