"""Code with a schema that is newer than its own: it works with what was only expanded, and else says why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.errors import Overloaded, SchemaOutdated
from signoff.stores import migrations, postgres
from signoff.stores.migrations import MIN_COMPATIBLE, migrate_schema
from signoff.stores.sql import SqlStore
from support.revisions import NEWEST, add_revision
from support.stores import inserted, opened

pytestmark = pytest.mark.anyio

COLUMN = "op.add_column('jobs', sa.Column('nickname', sa.Text(), server_default='none', nullable=False))"
NEXT_NUMBER = int(NEWEST) + 1
TOO_NEW = (
    rf"^This database is from a newer Signoff \(schema next, for versions with schema {NEXT_NUMBER:04} or newer\); "
    rf"this version has schema {NEWEST}\. Install the newer version\.$"
)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a database with the newest schema, or of a file that there is not yet."""
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


async def migrate_by_next_version(url: str, tmp_path: Path, *, contracts: bool) -> None:
    """Migrate the database as the next version does, whose schema has one column more."""
    with pytest.MonkeyPatch.context() as patch:
        add_revision(patch, tmp_path / "migrations", COLUMN)
        if contracts:
            patch.setattr(migrations, "_CONTRACTIONS", {"next": f"{NEXT_NUMBER:04}"})
        store = SqlStore(url)
        await store.migrate()
        await store.close()


async def revision_of(store: SqlStore) -> str | None:
    return await store._database.read(lambda conn, _: migrations.current_revision(conn))


async def test_code_goes_on_and_starts_with_a_schema_that_the_next_version_has_expanded(
    url: str, tmp_path: Path
) -> None:
    async with opened(url) as store:
        before = await inserted(store)
        await migrate_by_next_version(url, tmp_path, contracts=False)
        await store.check_schema()
        assert await store.jobs.get(before.id) == before
        await inserted(store)
    started = SqlStore(url)
    await started.start()
    assert await revision_of(started) == "next"
    assert await started.jobs.get(before.id) == before
    await inserted(started)
    await started.close()


async def test_a_migration_by_code_that_works_with_a_newer_schema_changes_nothing(url: str, tmp_path: Path) -> None:
    async with opened(url):
        await migrate_by_next_version(url, tmp_path, contracts=False)
    store = SqlStore(url)
    await store.migrate()
    await store.start()
    assert await revision_of(store) == "next"
    with pytest.raises(SchemaOutdated, match=rf"^The schema has revision next; .* up to {NEWEST}\. Use the newer"):
        await store.backup(tmp_path / "backup")
    await store.close()


async def test_code_says_in_one_line_that_a_newer_schema_needs_a_newer_version(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        await store.check_schema()
        await migrate_by_next_version(url, tmp_path, contracts=True)
        with pytest.raises(SchemaOutdated, match=TOO_NEW):
            await store.check_schema()
    for attempt in (SqlStore.start, SqlStore.migrate):
        store = SqlStore(url)
        with pytest.raises(SchemaOutdated, match=TOO_NEW):
            await attempt(store)
        await store.close()


async def test_the_oldest_compatible_revision_is_stored_once_and_is_no_version_of_a_copy(url: str) -> None:
    store = SqlStore(url)
    await store.migrate()
    await store.migrate()
    await store.start()
    query = sa.text("SELECT version FROM versions WHERE topic = :topic")
    numbers = await store._database.read(lambda conn, _: conn.execute(query, {"topic": MIN_COMPATIBLE}).scalars().all())
    assert [f"{number:04}" for number in numbers] == [migrations._FIRST_COMPATIBLE]
    assert MIN_COMPATIBLE not in await store.versions()
    await store.close()


async def test_a_migration_waits_for_a_table_in_use_without_stopping_its_users(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "TABLE_LOCK_PAUSE_SECONDS", 0)
    monkeypatch.setattr(postgres, "_LIMIT_TABLE_LOCKS", sa.text("SET LOCAL lock_timeout = '50ms'"))
    tries, failed_twice = 0, asyncio.Event()
    loop = asyncio.get_running_loop()

    def counted(conn: Connection) -> None:
        nonlocal tries
        tries += 1
        if tries > 2:
            loop.call_soon_threadsafe(failed_twice.set)
        migrate_schema(conn)

    async with opened(postgres_url) as reading, opened(postgres_url) as store:
        database = reading._database
        add_revision(monkeypatch, tmp_path / "migrations", COLUMN)
        async with database._open_engines().writing.connect() as user:
            # given a transaction that uses the table
            await user.execute(sa.text("SELECT count(*) FROM jobs"))
            migration = asyncio.create_task(store._database.change_schema(counted))
            await failed_twice.wait()
            # when the migration has begun again, then others still write
            await inserted(store)
            assert not migration.done()
            await user.rollback()
        await migration
        assert await revision_of(store) == "next"


async def test_a_migration_of_tables_that_stay_in_use_ends_with_what_to_do(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "TABLES_IN_USE_SECONDS", -1)
    monkeypatch.setattr(postgres, "_LIMIT_TABLE_LOCKS", sa.text("SET LOCAL lock_timeout = '50ms'"))
    async with opened(postgres_url) as store:
        add_revision(monkeypatch, tmp_path / "migrations", COLUMN)
        async with store._database._open_engines().writing.connect() as user:
            await user.execute(sa.text("SELECT count(*) FROM jobs"))
            with pytest.raises(Overloaded, match="pg_stat_activity"):
                await store.migrate()
        assert await revision_of(store) == NEWEST
