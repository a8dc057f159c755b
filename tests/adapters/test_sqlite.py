"""A SQLite file that several processes write: no write is lost or torn, and the write-ahead log stays short."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import dialects, event
from structlog.testing import capture_logs

from signoff.core.filters import JobFilter
from signoff.core.limits import Limit
from signoff.errors import Overloaded, SchemaOutdated
from signoff.stores import limits, schema, sql, sqlite
from signoff.stores.claims import _NEXT_PRIORITY, _claim_statement, _users_statement
from signoff.stores.job_pages import page_statement
from signoff.stores.people import page_of_tokens
from signoff.stores.sql import SqlStore
from signoff.stores.sqlite import Sqlite
from support.preloaded import PreloadedProcess
from support.stores import (
    ChangeRecorder,
    a_call,
    a_step,
    inserted,
    leased,
    opened,
    reserved,
    rows,
    settled,
    together,
    until,
)

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[1]
JOBS_EACH = 300
WRITERS = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file that is not there yet."""
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    """Yield a store in a new file."""
    async with opened(f"sqlite:///{path}") as store:
        yield store


class Program:
    """A process that runs `support/writes.py`."""

    def __init__(self, path: Path, name: str, jobs: int) -> None:
        self.output = dict[str, list[str]](inserted=[], settled=[], done=[])
        self.process = PreloadedProcess(
            [sys.executable, "-m", "support.writes", f"sqlite:///{path}", name, str(jobs)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> bool:
        """Read one line of the output, and return False at its end."""
        assert self.process.stdout is not None
        kind, _, name = self.process.stdout.readline().rstrip("\n").partition(" ")
        if name:  # the last line of a killed process may be incomplete
            self.output[kind].append(name)
        return bool(kind)

    def read_all(self) -> None:
        """Read all output until the process ends."""
        while self.read_line():
            pass
        self.process.wait()


@contextlib.contextmanager
def programs(path: Path, count: int, jobs: int, *, first: int = 0) -> Iterator[list[Program]]:
    """Yield `count` processes that write at once, numbered from `first`; kill those that still run at the end."""
    running = [Program(path, f"p{number}", jobs) for number in range(first, first + count)]
    try:
        yield running
    finally:
        for program in running:
            program.process.kill()
            program.process.communicate()


async def read_all(running: list[Program]) -> None:
    await together(asyncio.to_thread(program.read_all) for program in running)


def integrity(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


# Several processes


async def test_four_processes_write_at_once_and_nothing_is_lost(path: Path, store: SqlStore) -> None:
    with programs(path, 4, JOBS_EACH) as running:
        await read_all(running)

    assert [program.process.returncode for program in running] == [0, 0, 0, 0]
    ids = [job_id for program in running for job_id in program.output["inserted"]]
    settled = [job_id for program in running for job_id in program.output["settled"]]
    jobs = await store.jobs.list(JobFilter(limit=10_000))
    assert sorted(ids) == [job.id for job in jobs]
    assert len(ids) == 4 * JOBS_EACH
    assert len(settled) == len({*settled}), "each was settled by one process alone"
    assert sorted(settled) == [job.id for job in jobs if job.status == "success"]
    by_verb = sa.select(schema.events.c.verb, sa.func.count().label("times")).group_by(schema.events.c.verb)
    assert {row["verb"]: row["times"] for row in await rows(store, by_verb)} == {
        "submit": len(ids),
        "claim": len(settled),
        "succeed": len(settled),
    }
    assert integrity(path) == "ok"


async def test_a_killed_process_loses_no_write_that_it_has_acknowledged(path: Path, store: SqlStore) -> None:
    with programs(path, 4, JOBS_EACH) as [victim, *others]:
        while len(victim.output["inserted"]) < JOBS_EACH // 3:
            assert victim.read_line()
        os.kill(victim.process.pid, signal.SIGKILL)
        await read_all([victim, *others])

    assert victim.process.returncode == -signal.SIGKILL
    assert not victim.output["done"]
    assert [program.process.returncode for program in others] == [0, 0, 0]
    jobs = {job.id: job.status for job in await store.jobs.list(JobFilter(limit=10_000))}
    for program in (victim, *others):
        assert {*program.output["inserted"]} <= jobs.keys()
        assert {jobs[job_id] for job_id in program.output["settled"]} == {"success"}
    assert integrity(path) == "ok"


async def test_a_read_on_the_event_loop_waits_for_no_other_process_and_never_raises(
    path: Path, store: SqlStore
) -> None:
    def read(table: str) -> object:
        return store._database.read_at_once(f"SELECT 1 FROM {table} WHERE key = ?", ("a",))

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert read("cached") == []
        other.execute("COMMIT")
    assert read("nothing") is None
    await store.close()
    assert read("cached") is None


async def test_a_store_reads_while_another_process_writes(path: Path, store: SqlStore) -> None:
    recorder, counts = ChangeRecorder(store), [0]

    for turn in range(WRITERS):
        with programs(path, 1, JOBS_EACH // WRITERS, first=turn) as [writer]:
            reading = asyncio.ensure_future(read_all([writer]))
            while not reading.done():
                counts.append(await store.jobs.count(JobFilter(), at_most=10_000))
                jobs = await store.jobs.list(JobFilter(limit=20, newest_first=True))
                assert all(job.seq == 3 for job in jobs if job.status == "success"), "a row is never half a move"
            await reading
        counts.append(await store.jobs.count(JobFilter(), at_most=10_000))

    assert counts == sorted(counts)
    assert len({*counts}) > 3, "it saw the other one write"
    assert await store.jobs.count(JobFilter(), at_most=10_000) == JOBS_EACH
    assert {topic for topic, _ in recorder.recorded} > {"job"}


@pytest.mark.parametrize("after", [None, "0"])
@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    ("criteria", "indexes"),
    [
        ({}, ["sqlite_autoindex_jobs_1", "sqlite_autoindex_calls_1"]),
        ({"user_id": 1}, ["jobs_by_user", "calls_by_user_and_status", "calls_by_user_and_status"]),
        ({"status": "fail"}, ["jobs_by_status", "calls_by_status"]),
        ({"user_id": 1, "status": "fail"}, ["jobs_by_user_and_status", "calls_by_user_and_status"]),
        ({"user_id": 1, "status": "bot", "fingerprint": "x"}, ["jobs_by_user_and_status"]),
        ({"upstream_object_id": "x"}, ["jobs_by_upstream_object", "calls_by_upstream_object"]),
    ],
)
async def test_a_page_of_jobs_is_read_in_the_order_of_an_index(
    store: SqlStore, criteria: dict[str, Any], indexes: list[str], *, newest_first: bool, after: str | None
) -> None:
    page = page_statement(JobFilter(**criteria, after_id=after, newest_first=newest_first, with_steps=False))
    statement = page.compile(dialect=dialects.sqlite.dialect(), compile_kwargs={"literal_binds": True})
    steps = await rows(store, sa.text(f"EXPLAIN QUERY PLAN {statement}"))
    reads = [step["detail"] for step in steps if " INDEX " in step["detail"]]
    assert [re.search(r"INDEX (\w+)", detail)[1] for detail in reads] == indexes
    # Only what was read of a range is sorted, never the range.
    ranges = {step["id"] for step in steps if step["detail"].startswith("CO-ROUTINE")}
    assert not [step for step in steps if "TEMP B-TREE" in step["detail"] and step["parent"] in ranges]


@pytest.mark.parametrize("user_id", [None, 1])
async def test_a_page_of_tokens_reads_an_index_in_order(store: SqlStore, user_id: int | None) -> None:
    page = page_of_tokens("session", user_id, 0).limit(5)
    statement = page.compile(dialect=dialects.sqlite.dialect(), compile_kwargs={"literal_binds": True})
    details = [step["detail"] for step in await rows(store, sa.text(f"EXPLAIN QUERY PLAN {statement}"))]
    assert [detail for detail in details if "SEARCH tokens USING INDEX" in detail]
    assert not [detail for detail in details if "SCAN tokens" in detail or "TEMP B-TREE" in detail]


@pytest.mark.parametrize(
    "query",
    [_claim_statement(1, 0), _claim_statement(3, 2), _users_statement(0, 0), _users_statement(2, 2), _NEXT_PRIORITY],
)
async def test_a_claim_reads_an_index_in_order(store: SqlStore, query: Any) -> None:
    statement = str(query.compile(dialect=dialects.sqlite.dialect()))
    statement = re.sub(r"LIMIT \?", "LIMIT 1", statement).replace("?", "NULL")
    details = [step["detail"] for step in await rows(store, sa.text(f"EXPLAIN QUERY PLAN {statement}"))]
    assert [detail for detail in details if "INDEX jobs_to_claim" in detail]
    assert not [detail for detail in details if "SCAN jobs" in detail or "TEMP B-TREE" in detail]


async def test_stores_that_migrate_at_once_make_one_schema(path: Path) -> None:
    stores = [SqlStore(f"sqlite:///{path}") for _ in range(4)]

    await together(store.migrate() for store in stores)

    await together(store.start() for store in stores)
    await together(inserted(store) for store in stores)
    assert await stores[0].jobs.count(JobFilter(), at_most=10_000) == 4
    await together(store.close() for store in stores)


# The lock


class Witness:
    """An observer that records for each statement of a store whether the lock is held."""

    def __init__(self, path: Path) -> None:
        self.statements: list[tuple[str, bool]] = []
        self.path = path

    def watch(self, database: Sqlite) -> None:
        """Watch all connections from the first one on."""
        for engine in (database._writing, database._reading):
            event.listen(engine, "connect", self._connected)
            event.listen(engine, "close", lambda *_: self._observe("close"))

    def _connected(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.set_trace_callback(self._observe)

    def _observe(self, statement: str) -> None:
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.statements.append((statement, True))
            else:
                self.statements.append((statement, False))

    def held_during(self, beginning: str) -> set[bool]:
        """Return the states of the lock (held or not) during the statements that begin with `beginning`."""
        return {held for statement, held in self.statements if statement.startswith(beginning)}


async def test_every_write_checkpoint_and_close_holds_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 0)
    witness = Witness(path)
    store = SqlStore(f"sqlite:///{path}")
    assert isinstance(store._database, Sqlite)
    witness.watch(store._database)

    await store.migrate()
    await store.start()
    job = await leased(store)
    await store._database._in_writer_thread(lambda: None)  # a checkpoint comes before it
    monkeypatch.setattr(sqlite, "TRUNCATE_BYTES", 0)
    await store.jobs.transition(job.id, a_step("succeed"))
    await store._database._in_writer_thread(lambda: None)
    await store.jobs.get(job.id)
    await store.close()

    writes = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "CREATE", "COMMIT", "PRAGMA journal_mode=")
    checkpoints = ("PRAGMA wal_checkpoint(PASSIVE)", "PRAGMA wal_checkpoint(TRUNCATE)")
    for beginning in (*writes, *checkpoints, "close"):
        assert witness.held_during(beginning) == {True}, beginning
    assert witness.held_during("SELECT") == {True, False}, "a read needs no lock"


async def test_a_write_waits_for_the_lock_up_to_a_limit(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(path) as release:
        waiting = asyncio.ensure_future(inserted(store))
        await until(lambda: is_polling(store))
        assert await store.jobs.count(JobFilter(), at_most=10_000) == 0, "reads go on"
        release()
        assert await waiting == (await store.jobs.list(JobFilter()))[0]

    monkeypatch.setattr(sqlite, "WRITE_TIMEOUT_SECONDS", 0.05)
    with locked(path), pytest.raises(Overloaded):
        await inserted(store)
    assert await store.jobs.count(JobFilter(), at_most=10_000) == 1


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock, like another process that writes, until the block ends or calls the yielded function."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


async def is_polling(store: SqlStore) -> bool:
    """Return True if the writer has taken all operations out of its queue."""
    assert isinstance(store._database, Sqlite)
    return store._database._writer._waiting.empty()


# The write-ahead log


async def test_the_log_stays_short_however_much_is_written(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 1_000_000)
    monkeypatch.setattr(sqlite, "PAUSE_SECONDS", 1000)
    assert await largest_log(path, store, written=4 * sqlite.CHECKPOINT_BYTES) < 2 * sqlite.CHECKPOINT_BYTES


async def test_the_log_takes_a_small_share_of_a_disk_that_is_nearly_full(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PAUSE_SECONDS", 1000)
    monkeypatch.setattr(sqlite.os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    assert await largest_log(path, store, written=4 * sqlite.PAUSE_CHECKPOINT_BYTES) < 2 * sqlite.PAUSE_CHECKPOINT_BYTES


async def largest_log(path: Path, store: SqlStore, *, written: int) -> int:
    """Write more than `written` bytes, and return the largest size that the log had meanwhile."""
    body, largest = os.urandom(5_000).hex().encode(), 0
    for _ in range(40):
        await together(inserted(store, body=body) for _ in range(20))
        largest = max(largest, path.with_name("store.db-wal").stat().st_size)
    assert 40 * 20 * len(body) > written
    return largest


async def test_the_log_begins_again_after_a_pause(path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAUSE_CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite, "PAUSE_SECONDS", 0.001)
    wal, body = path.with_name("store.db-wal"), b"x" * 200_000
    await inserted(store, body=body)

    async def begun_again() -> bool:
        await inserted(store)  # the first write after a checkpoint begins the log again
        return wal.stat().st_size < 100_000

    await until(begun_again)


async def test_a_reader_that_blocks_checkpoints_does_not_block_writes(
    path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite, "TRUNCATE_BYTES", 200_000)
    monkeypatch.setattr(sqlite, "TRUNCATE_WAIT_MS", 10)
    wal, body = path.with_name("store.db-wal"), b"x" * 50_000
    await inserted(store)

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        for _ in range(10):
            await inserted(store, body=body)
        assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        assert wal.stat().st_size > 400_000

    await inserted(store)
    database: Any = store._database
    await database._in_writer_thread(lambda: None)  # the checkpoint comes before
    assert wal.stat().st_size < 200_000


async def test_the_last_store_to_close_removes_the_log(path: Path) -> None:
    wal = path.with_name("store.db-wal")
    async with opened(f"sqlite:///{path}") as last:
        async with opened(f"sqlite:///{path}") as first:
            await inserted(first)
            await inserted(last)
        assert wal.exists()
        await inserted(last)

    assert not wal.exists()
    assert integrity(path) == "ok"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (3,)


async def test_writes_that_were_enqueued_before_closing_are_written(path: Path) -> None:
    async with opened(f"sqlite:///{path}") as store:
        written = [await store.jobs.log_call(a_call(), actor="test", verbs=["submit", "succeed"]) for _ in range(50)]

    assert all(future.result() for future in written)
    async with opened(f"sqlite:///{path}") as store:
        assert await store.jobs.count(JobFilter(), at_most=10_000) == 50


# Faulty files


async def test_an_outdated_schema_names_the_command_that_helps(path: Path) -> None:
    async with opened(f"sqlite:///{path}"):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0016'")
    store = SqlStore(f"sqlite:///{path}")

    with pytest.raises(SchemaOutdated, match=r"revision 0016.*signoff migrate"):
        await store.start()
    await store.close()


async def test_an_empty_file_names_the_command_that_helps(path: Path) -> None:
    store = SqlStore(f"sqlite:///{path}")
    with pytest.raises(SchemaOutdated, match="signoff migrate"):
        await store.start()
    await store.close()


async def test_a_full_disk_fails_the_write_and_not_the_server(store: SqlStore) -> None:
    database: Any = store._database
    pages = await database._in_writer_thread(lambda: database._pragma("page_count"))
    await database._in_writer_thread(lambda: database._pragma(f"max_page_count={pages}"))

    with pytest.raises(Overloaded):
        await inserted(store, body=b"x" * 1_000_000)
    assert await store.jobs.list(JobFilter()) == []

    await database._in_writer_thread(lambda: database._pragma("max_page_count=1000000"))
    job = await inserted(store)
    assert await store.jobs.get(job.id) == job


async def test_a_database_that_takes_no_writes_is_not_ready_until_it_does(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "WRITABLE_SECONDS", 0)
    database: Any = store._database
    states = [await store.is_ready()]
    for value in (1, 0):
        await database._in_writer_thread(lambda value=value: database._pragma(f"query_only={value}"))
        states.append(await store.is_ready())

    monkeypatch.setattr(sql, "MIN_FREE_BYTES", 2**62)
    states.append(await store.is_ready())

    assert states == [True, False, True, False]


async def test_usage_counts_once_though_its_commit_takes_longer_than_a_caller_waits(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = await reserved(store, Limit(scope="all", tokens_per_day=100), 50)
    database: Any = store._database
    monkeypatch.setattr(database._writer, "_timeout_seconds", 0.05)
    monkeypatch.setattr(limits, "WRITE_TIMEOUT_SECONDS", 0.05)
    disk = threading.Event()
    event.listen(database._writing, "commit", lambda _: disk.wait())

    settling = asyncio.ensure_future(settled(store, reservation, 30))
    await asyncio.wait([settling], timeout=0.2)
    disk.set()
    counter = await settling

    assert (counter.day.tokens, counter.pending) == (30, ())


async def test_a_file_that_others_lock_fails_a_group_once(path: Path, store: SqlStore) -> None:
    database: Any = store._database
    await database._in_writer_thread(lambda: database._pragma("busy_timeout=200"))
    writer, groups = database._writer, list[Any]()
    run = writer._run_group

    async def counted(group: Any) -> list[Any]:
        groups.append(group)
        return await run(group)

    writer._run_group = counted

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        results = await together(refused(store) for _ in range(100))

    assert results == [True] * 100
    assert len(groups) < 10, "a group was run again for each of its operations"
    assert await store.jobs.count(JobFilter(), at_most=10_000) == 0
    await inserted(store)


async def refused(store: SqlStore) -> bool:
    try:
        await inserted(store)
    except Overloaded:
        return True
    return False


async def test_the_log_entry_of_a_refused_row_does_not_contain_its_values(store: SqlStore) -> None:
    call = a_call()
    with capture_logs() as logs:
        for _ in range(2):
            written = await store.jobs.log_call(call, actor="test", verbs=["submit"])
            await asyncio.wait([written])
        error = written.exception()

    assert error is not None
    assert "[parameters:" not in f"{error!r} {error} {logs}"


async def test_only_the_owner_can_read_the_files_whatever_their_folder_allows(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "open.db"
    before = os.umask(0o022)
    try:
        for mode in (None, 0o644):
            if mode is not None:
                path.chmod(mode)
            store = SqlStore(f"sqlite:///{path}")
            await store.migrate()
            await store.start()
            await inserted(store)
            files = [each for each in tmp_path.iterdir() if each.is_file()]
            assert {each.suffix for each in files} >= {".db", ".db-wal"}
            assert {each.name: oct(each.stat().st_mode & 0o777) for each in files} == {
                each.name: "0o600" for each in files
            }
            await store.close()
    finally:
        os.umask(before)
