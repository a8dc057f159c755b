"""Migrations of the database schema, and the functions that apply and check them.

A migration expands the schema, so that the code of the release before works with it, too. One that contracts it comes a
release later, and stands in `_CONTRACTIONS`; decision 50 says what each may do. From these follows the oldest revision
whose code works with the schema. It is stored in the database, so that code which does not know the revision of a newer
schema can tell whether it works with it.

Alembic is imported only for a migration, because its import takes a sixth of the time in which a server starts.
"""

from pathlib import Path

import sqlalchemy as sa
import structlog

from signoff.errors import SchemaOutdated

log = structlog.get_logger()

MIN_COMPATIBLE = "min_compatible_schema"
"""Topic of the row of the table `versions` with the number of the oldest revision whose code works with the schema."""
_FOLDER = Path(__file__).parent
# All revisions, oldest first. Each is the number at the beginning of its file's name; some numbers were never used.
_REVISIONS = sorted(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*.py"))
# For each migration that contracts the schema, the oldest revision whose code works after it.
_CONTRACTIONS: dict[str, str] = {}
# Code of earlier revisions does not read the row of MIN_COMPATIBLE, and starts with the schema of its own alone.
_FIRST_COMPATIBLE = "0037"


def migrate_schema(conn: sa.Connection, revision: str | None = None) -> None:
    """Migrate the schema to `revision`, by default the newest one, in the transaction of `conn`.

    Leave a newer schema as it is if this version works with it. Raises SchemaOutdated for another one that this version
    does not know.
    """
    newest = _REVISIONS[-1]
    revision, present = revision or newest, current_revision(conn)
    if present is not None and not is_known(present):
        _check_fits(conn, present)
        log.info("schema_is_newer", schema=present, newest_known=newest, effect="there is nothing to migrate")
        return
    if present != revision:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
    if revision == newest:
        _store_min_compatible(conn)


def check_schema(conn: sa.Connection, *, must_be_own: bool = False) -> None:
    """Raise SchemaOutdated, with the remedy, unless this version works with the schema.

    It works with the newest schema that it knows, and with newer ones that were only expanded; not if `must_be_own`.
    """
    revision, newest = current_revision(conn), _REVISIONS[-1]
    if revision is None:
        raise SchemaOutdated("The database is empty. Run: signoff migrate")
    _check_fits(conn, revision)
    if must_be_own and revision != newest:
        raise SchemaOutdated(
            f"The schema has revision {revision}; this version knows up to {newest}. Use the newer version for this."
        )


def _check_fits(conn: sa.Connection, revision: str) -> None:
    newest = _REVISIONS[-1]
    if revision == newest:
        return
    if is_known(revision):
        raise SchemaOutdated(f"The schema has revision {revision}; this version needs {newest}. Run: signoff migrate")
    if revision < newest:
        raise SchemaOutdated(f"This version does not know the schema revision {revision}; use the one that made it.")
    oldest = _min_compatible(conn)
    if oldest is None or oldest > newest:
        needed = "" if oldest is None else f", for versions with schema {oldest} or newer"
        raise SchemaOutdated(
            f"This database is from a newer Signoff (schema {revision}{needed}); this version has schema {newest}. "
            "Install the newer version."
        )


def current_revision(conn: sa.Connection) -> str | None:
    """Return the revision of the database's schema; None if the database is empty."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def is_known(revision: str) -> bool:
    """Return True if this version of Signoff knows the revision, so that it can migrate from there."""
    return revision in _REVISIONS


def _min_compatible(conn: sa.Connection) -> str | None:
    """Return the oldest revision whose code works with the schema, as its last migration has stored it."""
    query = sa.text("SELECT version FROM versions WHERE topic = :topic")
    number = conn.execute(query, {"topic": MIN_COMPATIBLE}).scalar_one_or_none()
    return None if number is None else f"{number:04}"


def _store_min_compatible(conn: sa.Connection) -> None:
    """Store the oldest revision whose code works with the newest schema, unless it is stored."""
    oldest = max([_FIRST_COMPATIBLE, *_CONTRACTIONS.values()])
    if (stored := _min_compatible(conn)) == oldest:
        return
    statement = "INSERT INTO versions (topic, version) VALUES (:topic, :number)"
    if stored is not None:
        statement = "UPDATE versions SET version = :number WHERE topic = :topic"
    conn.execute(sa.text(statement), {"topic": MIN_COMPATIBLE, "number": int(oldest)})
