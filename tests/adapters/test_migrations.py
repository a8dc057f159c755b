"""Migrations, which produce the schema that the metadata in `schema.py` declares."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.pool import NullPool

from signoff.cache import CacheBounds
from signoff.core.counters import Counter
from signoff.core.filters import JobFilter
from signoff.core.job import Event, Job
from signoff.core.times import HOUR_US
from signoff.core.transitions import replay
from signoff.core.usage import UsageQuery, UsageTotals, totals_of
from signoff.store import CachedTopic
from signoff.stores import migrations
from signoff.stores.json_column import JsonColumn
from signoff.stores.migrations import migrate_schema
from signoff.stores.schema import metadata
from signoff.stores.sql import SqlStore
from simulation.usage import plus
from support.stores import ANSWER, a_call, a_job, logged, opened

pytestmark = [
    pytest.mark.anyio,
    # SQLAlchemy cannot read these back from SQLite; the comparison of the statements covers them.
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]

# Columns of the table `jobs` that the old schemas of these tests do not have.
LATER_COLUMNS = {
    *("headers", "ruling", "review_queue", "review_priority", "assignee", "held_at", "escalated_at", "copy_of"),
    *("batch_id", "batch_line"),
}
COUNTER = msgspec.json.encode(Counter())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    return (
        f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("empty_postgres_url")
    )


async def with_connection(url: str, function: Any) -> Any:
    """Call `function` with a connection to the database, which it may change, and return its result."""
    if url.startswith("sqlite"):
        with engine(url).begin() as conn:
            return function(conn)
    from sqlalchemy.ext.asyncio import create_async_engine

    async with create_async_engine(url.replace("://", "+asyncpg://"), poolclass=NullPool).begin() as conn:
        return await conn.run_sync(function)


def engine(url: str) -> Engine:
    """Return an engine for a SQLite file."""
    return sa.create_engine(url, poolclass=NullPool)


def differences(conn: Connection) -> list[Any]:
    """Return the changes that Alembic would make; JSON columns are stored as bytes."""

    def differ(_context: Any, _column: Any, _declared: Any, actual: Any, declared: Any) -> bool | None:
        return not isinstance(actual, sa.LargeBinary) if isinstance(declared, JsonColumn) else None

    return compare_metadata(MigrationContext.configure(conn, opts={"compare_type": differ}), metadata)


def shape(conn: Connection) -> dict[str, Any]:
    """Return all tables, columns, keys and indexes as the database describes them, without those of Alembic."""
    inspector = sa.inspect(conn)
    tables = [table for table in inspector.get_table_names() if table != "alembic_version"]
    indexes = {"sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"}.get(
        conn.dialect.name, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )
    return {
        # Sorted, because a column that a migration adds comes last in its table.
        "columns": {table: sorted(map(str, inspector.get_columns(table))) for table in tables},
        "primary keys": {table: inspector.get_pk_constraint(table)["constrained_columns"] for table in tables},
        "foreign keys": {table: [str(key) for key in inspector.get_foreign_keys(table)] for table in tables},
        "unique": {table: sorted(str(key) for key in inspector.get_unique_constraints(table)) for table in tables},
        "indexes": sorted(sql for sql in conn.exec_driver_sql(indexes).scalars() if "alembic" not in sql),
    }


async def test_a_migrated_database_matches_the_metadata(url: str) -> None:
    await with_connection(url, migrate_schema)

    assert await with_connection(url, differences) == []


async def test_a_migrated_database_equals_one_created_from_the_metadata(url: str) -> None:
    await with_connection(url, migrate_schema)
    migrated = await with_connection(url, shape)

    await with_connection(url, metadata.drop_all)
    await with_connection(url, metadata.create_all)

    created = await with_connection(url, shape)
    assert migrated == created
    assert {*created["columns"]} == {*metadata.tables}


async def test_the_comparison_detects_a_missing_table(url: str) -> None:
    await with_connection(url, migrate_schema)
    await with_connection(url, metadata.tables["used_keys"].drop)

    assert ("add_table", "used_keys") in [
        (change[0], change[1].name) for change in await with_connection(url, differences)
    ]


async def test_migrating_twice_changes_nothing(url: str) -> None:
    store = SqlStore(url)
    await store.migrate()
    before = await with_connection(url, shape)
    await store.migrate()
    await store.close()

    assert await with_connection(url, shape) == before
    async with opened(url) as store:
        assert await store.versions() == dict.fromkeys(get_args(CachedTopic), 0)


async def test_rows_from_before_the_column_renames_are_kept(url: str) -> None:
    def write_old_rows(conn: Connection) -> None:
        migrate_schema(conn, "0009")
        old = sa.MetaData()
        old.reflect(conn)
        columns = {
            "client_id": "own_id",
            "upstream_object_id": "made",
            "ttft_us": "first_us",
            "generation_us": "answer_us",
        }
        data = {columns.get(name, name): value for name, value in event.data.items()}
        row = {columns.get(name, name): value for name, value in stored(job).items()}
        conn.execute(sa.insert(old.tables["jobs"]).values(**row))
        conn.execute(sa.insert(old.tables["events"]).values(**stored(event) | {"data": msgspec.json.encode(data)}))
        conn.execute(sa.insert(old.tables["meters"]).values(name="all", meter=COUNTER, updated_at=1))

    names = {"client_id": "mine", "upstream_object_id": "resp_1", "ttft_us": 7, "generation_us": 8}
    job = a_job(created_at=1, updated_at=1, status="success", **names)
    event = Event(job_id=job.id, seq=1, verb="submit", actor="user:ann", at=1, data=names)

    await with_connection(url, write_old_rows)
    await with_connection(url, migrate_schema)

    async with opened(url) as store:
        assert await store.jobs.by_client_id(job.user_id, "mine") == job
        assert await store.jobs.list(JobFilter(upstream_object_id="resp_1")) == [job]
        assert replay(await store.jobs.events(job.id)).items() >= names.items()
        assert (await store.limits.counters(["all"]))["all"].day.tokens == 0


async def test_functions_from_before_the_types_of_json_schema_are_kept(url: str) -> None:
    def write_old_rows(conn: Connection) -> None:
        migrate_schema(conn, "0038")
        old_params = [{"name": name, "reads": name} for name in ("text", "whole", "number", "truth", "list", "object")]
        old = [{"name": "every", "params": [*old_params, {"name": "any", "has_default": True}]}, {"name": "none"}]
        rows = [{"name": each["name"], "function": msgspec.json.encode(each)} for each in old]
        conn.execute(sa.insert(sa.table("functions", sa.column("name"), sa.column("function"))), rows)

    await with_connection(url, write_old_rows)
    await with_connection(url, migrate_schema)

    async with opened(url) as store:
        every, none = await store.library.functions()
    assert [(param.name, param.type) for param in every.params] == [
        ("text", "string"),
        ("whole", "integer"),
        ("number", "number"),
        ("truth", "boolean"),
        ("list", "array"),
        ("object", "object"),
        ("any", "any"),
    ]
    assert every.params[-1].has_default
    assert none.params == ()


async def test_inputs_of_message_batches_that_have_ended_are_given_up(url: str) -> None:
    def write_old_rows(conn: Connection) -> None:
        migrate_schema(conn, "0039")
        old = sa.MetaData()
        old.reflect(conn)
        batch = {"user_id": 1, "api": "anthropic", "caller": b"{}", "endpoint": "/v1/messages", "errors": b"[]"}
        batch |= {"next_line": 1, "next_byte": 0, "created_at": 1, "expires_at": 2, "due_at": 1}
        file = {"user_id": 1, "filename": "", "purpose": "message_batch", "size_bytes": 1, "created_at": 1}
        rows = [file | {"id": name} for name in ("ended", "open", "purged", "theirs")]
        rows[-1] |= {"purpose": "batch"}
        conn.execute(sa.insert(old.tables["files"]), rows)
        conn.execute(sa.insert(old.tables["files"]).values(file | {"id": "new", "created_at": 10**16}))
        for name, status in (("ended", "completed"), ("open", "in_progress")):
            conn.execute(
                sa.insert(old.tables["batches"]).values(batch | {"id": name, "input_file_id": name, "status": status})
            )

    await with_connection(url, write_old_rows)
    await with_connection(url, migrate_schema)

    async with opened(url) as store:
        assert {file.id for file in await store.files.garbage(10)} == {"ended", "purged"}


async def test_the_usage_from_before_the_sums_is_kept(url: str) -> None:
    jobs = [
        a_job(created_at=hour * HOUR_US + 1, updated_at=9, status=status, model=model, prompt_tokens=number, **more)
        for number, (hour, status, model, more) in enumerate(
            [
                (100, "success", "a", {"cost_nanodollars": 5, "generation_us": 7}),
                (100, "success", "a", {"completion_tokens": 3}),
                (100, "fail", "a", {}),
                (101, "success", "b", {"cache": "hit", "prompt": "p", "prompt_version": 2}),
                (101, "human", "b", {}),
                (101, "bot", "b", {}),
            ]
        )
    ]
    past = {"hour": 99 * HOUR_US, "user_id": 1, "token_id": 1, "target": "t", "model": "a", "door": "d"}
    past |= {"status": "stale"} | dict.fromkeys(UsageTotals.__struct_fields__, 11)

    def write_old_rows(conn: Connection) -> None:
        migrate_schema(conn, "0010")
        old = sa.MetaData()
        old.reflect(conn)
        for job in jobs:
            conn.execute(sa.insert(old.tables["jobs"]).values(**stored(job)))
        conn.execute(sa.insert(old.tables["past_usage"]).values(**past))

    await with_connection(url, write_old_rows)
    await with_connection(url, migrate_schema)

    async with opened(url) as store:
        by = ("hour", "model", "status", "cache", "prompt", "prompt_version")
        usage_rows, total = await store.usage.report(UsageQuery(by=by))
        assert total == plus(*map(totals_of, jobs), UsageTotals(**dict.fromkeys(UsageTotals.__struct_fields__, 11)))
        assert len(usage_rows) == 6


@pytest.mark.parametrize("copies", [20, pytest.param(1_000_000, marks=pytest.mark.long)])
async def test_calls_and_cached_answers_from_before_the_table_of_calls_are_kept(url: str, copies: int) -> None:
    # given ended calls, one of which the cache knows, in the schema before
    at = 50 * HOUR_US
    call = a_call(id="call-0000000", created_at=at, updated_at=at, prompt_tokens=3, upstream_object_id="o")
    event = Event(job_id=call.id, seq=1, verb="succeed", actor="user:ann", at=at, data={"status": "success"})
    entry = {"key": "k", "user_id": 1, "target": "t", "model": "m", "path": call.path, "job_id": call.id}
    entry |= {"size_bytes": 3, "answer": ANSWER, "created_at": at, "expires_at": 2**62}

    def write_old_rows(conn: Connection) -> None:
        migrate_schema(conn, "0011")
        old = sa.MetaData()
        old.reflect(conn)
        conn.execute(sa.insert(old.tables["jobs"]).values(**stored(call)))
        conn.execute(sa.insert(old.tables["events"]).values(**stored(event)))
        conn.execute(sa.insert(old.tables["cached"]).values(**entry))
        columns = ", ".join(column.name for column in old.tables["jobs"].c)
        copied = columns.replace("id, ", "'call-' || substr(CAST(10000000 + n AS TEXT), 2), ", 1)
        conn.exec_driver_sql(
            f"INSERT INTO jobs ({columns}) WITH RECURSIVE numbers (n) AS "
            f"(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {copies}) "
            f"SELECT {copied} FROM numbers CROSS JOIN (SELECT * FROM jobs LIMIT 1) AS call"
        )

    await with_connection(url, write_old_rows)
    # when the schema is migrated, and another call is logged
    await with_connection(url, migrate_schema)
    async with opened(url) as store:
        assert isinstance(store, SqlStore)
        new = a_call(id="call-9999999", upstream_object_id="o")
        await logged(store, new)
        # then lists, counts, ownership, events and the cache have the old calls and the new one
        newest = await store.jobs.list(JobFilter(newest_first=True, limit=3))
        assert [job.id for job in newest] == [new.id, f"call-{copies:07}", f"call-{copies - 1:07}"]
        oldest = await store.jobs.list(JobFilter(user_id=1, status="success", limit=2))
        assert oldest == [call, msgspec.structs.replace(call, id="call-0000001")]
        assert await store.jobs.count(JobFilter(status="success"), at_most=10**7) == copies + 2
        assert (await store.jobs.list(JobFilter(upstream_object_id="o", limit=1))) == [call]
        assert await store.jobs.events(call.id) == [event]
        hits = await store.cache(CacheBounds(ttl_seconds=1, max_entries=10, max_bytes=10**6)).lookup(["k"])
        assert hits["k"].entry.answer == ANSWER


def stored(value: Any) -> dict[str, Any]:
    """Return the columns of a row in an old schema, with structured values as JSON, as the column type writes them."""
    table = metadata.tables["jobs" if isinstance(value, Job) else "events"]
    row = {name: getattr(value, name) for name in value.__struct_fields__ if name not in LATER_COLUMNS}
    return {
        name: msgspec.json.encode(item) if isinstance(table.c[name].type, JsonColumn) and item is not None else item
        for name, item in row.items()
    }


async def test_the_history_is_linear_and_each_file_name_begins_with_its_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    history = [*ScriptDirectory.from_config(config).walk_revisions()]
    assert [script.revision for script in reversed(history)] == migrations._REVISIONS
    assert all(Path(script.path).name.startswith(f"{script.revision}_") for script in history)
