"""SQLite: one writer thread a process, and one writing process at a time.

SQLite before 3.51.3 can corrupt a write-ahead log that one connection writes while another checkpoints.
So every write, checkpoint and close happens under an advisory lock on a file beside the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event

from signoff.store import Listener, Topic
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Read, clock_of
from signoff.stores.migrations import check_schema, migrate_schema
from signoff.stores.writer import Rows, Tx, Writer

T = TypeVar("T")

READERS = 4
NEWS_POLL_SECONDS = 0.05
CHECKPOINT_SECONDS = 1.0
TRUNCATE_BYTES = 64 * 1024 * 1024


class Sqlite:
    """A file, or a new one. Every function runs in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._wal_path = path.with_name(path.name + "-wal")
        self._writer_thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(READERS, "sqlite-reader")
        self._writing = _engine(path, begin="BEGIN IMMEDIATE", pool_size=1)
        self._reading = _engine(path, begin="BEGIN", pool_size=READERS + 1)
        self._writer = Writer(
            self._run_group,
            waiting_limit=WAITING_LIMIT,
            group_limit=GROUP_LIMIT,
            timeout_seconds=WRITE_TIMEOUT_SECONDS,
        )
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lock_file: int | None = None
        self._checkpointed_at = time.monotonic()

    async def start(self) -> None:
        """Opens the file. Raises SchemaOutdated if it must be migrated first."""
        await self._in_writer_thread(lambda: _checked(self._writing))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._writer.run()), loop.create_task(self._watch())]

    async def migrate(self) -> None:
        """Brings the schema up to date; makes the file if there is none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self._in_writer_thread(self._migrate)

    async def read(self, function: Read[T]) -> T:
        """See `database.Database`."""

        def run() -> T:
            with self._reading.connect() as conn:
                return function(conn, clock_of(conn))

        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, run)

    async def write(self, operation: Callable[[Tx], T] | Rows[T]) -> T:
        """See `database.Database`."""
        return await self._writer.write(operation)

    async def enqueue(self, operation: Callable[[Tx], T] | Rows[T]) -> asyncio.Future[T]:
        """See `database.Database`."""
        return await self._writer.enqueue(operation)

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Flushes what waits, checkpoints, and lets the file go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks) if self._tasks else None
        self._reader_threads.shutdown(wait=True)
        await self._in_writer_thread(self._close)
        self._writer_thread.shutdown(wait=True)

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        results, news = await self._in_writer_thread(lambda: self._commit(group))
        for topic, name in news:
            self._tell(topic, name)
        return results

    async def _in_writer_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, function)

    async def _watch(self) -> None:
        """Says `any` when another process has written: on the writing connection, `data_version` counts those alone."""
        seen = -1
        while True:
            version = await self._in_writer_thread(lambda: self._pragma("data_version"))
            if version != seen >= 0:
                self._tell("any", "")
            seen = version
            await asyncio.sleep(NEWS_POLL_SECONDS)

    def _tell(self, topic: Topic, name: str) -> None:
        for listener in self._listeners:
            listener(topic, name)

    # What follows runs in the writer thread.

    def _commit(self, group: Callable[[Tx], list[Any]]) -> tuple[list[Any], list[tuple[Topic, str]]]:
        with self._locked():
            with self._writing.begin() as conn:
                tx = Tx(conn, clock_of(conn)(), [])
                results = group(tx)
            if time.monotonic() - self._checkpointed_at > CHECKPOINT_SECONDS:
                self._checkpoint("PASSIVE")
        return results, tx.news

    def _checkpoint(self, mode: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._wal_path.stat().st_size > TRUNCATE_BYTES:
                mode = "TRUNCATE"
        self._pragma(f"wal_checkpoint({mode})")
        self._checkpointed_at = time.monotonic()

    def _pragma(self, pragma: str) -> int:
        """The first number that the writing connection answers, outside of any transaction."""
        connection = self._writing.raw_connection()
        try:
            row = connection.cursor().execute(f"PRAGMA {pragma}").fetchone()
        finally:
            connection.close()
        return row[0] if row else 0

    def _migrate(self) -> None:
        with self._locked():
            self._pragma("journal_mode=WAL")
            with self._writing.begin() as conn:
                migrate_schema(conn)

    def _close(self) -> None:
        with self._locked():
            if self._wal_path.exists():
                self._checkpoint("TRUNCATE")
            self._reading.dispose()
            self._writing.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        if self._lock_file is None:
            self._lock_file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def _engine(path: Path, *, begin: str, pool_size: int) -> Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": WRITE_TIMEOUT_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own, late BEGIN would let two transactions deadlock
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=0", "cache_size=-16000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(conn: Connection) -> None:
        conn.exec_driver_sql(begin)

    return engine


def _checked(engine: Engine) -> None:
    with engine.connect() as conn:
        check_schema(conn)
