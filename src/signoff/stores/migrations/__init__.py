"""Migrations of the database schema, and the functions that apply and check them.

Alembic is imported only for a migration, because its import takes a sixth of the time in which a server starts.
"""

from pathlib import Path

import sqlalchemy as sa

from signoff.errors import SchemaOutdated

_FOLDER = Path(__file__).parent
# All revisions, oldest first. Each is the number at the beginning of its file's name.
_REVISIONS = sorted(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*.py"))


def migrate_schema(conn: sa.Connection, revision: str | None = None) -> None:
    """Migrate the schema to `revision`, by default the newest one, in the transaction of `conn`.

    Raises SchemaOutdated for a schema that this version does not know.
    """
    revision = revision or _REVISIONS[-1]
    if (present := current(conn)) == revision:
        return
    _check_known(present)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


def check_schema(conn: sa.Connection) -> None:
    """Raise SchemaOutdated, with the command that helps, unless the schema has the newest revision."""
    revision, newest = current(conn), _REVISIONS[-1]
    if revision is None:
        raise SchemaOutdated("The database is empty. Run: signoff migrate")
    _check_known(revision)
    if revision != newest:
        raise SchemaOutdated(f"The schema has revision {revision}; this version needs {newest}. Run: signoff migrate")


def _check_known(revision: str | None) -> None:
    """Raise SchemaOutdated for the schema of a newer version, which this one must neither use nor change."""
    if revision is None or is_known(revision):
        return
    newest = _REVISIONS[-1]
    if revision > newest:
        raise SchemaOutdated(
            f"This database is from a newer Signoff ({revision}); this one knows up to {newest}. Start the newer one."
        )
    raise SchemaOutdated(f"The schema has the revision {revision}, which this version does not know (up to {newest}).")


def current(conn: sa.Connection) -> str | None:
    """Return the revision of the database's schema; None if the database is empty."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def is_known(revision: str) -> bool:
    """Return True if this version of Signoff knows the revision, so that it can migrate from there."""
    return revision in _REVISIONS
