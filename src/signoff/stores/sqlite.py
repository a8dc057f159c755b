"""SQLite: one writer thread a process, and one writing process at a time.

SQLite before 3.51.3 can corrupt a write-ahead log that one connection writes while another checkpoints.
So every write, checkpoint and close happens under an advisory lock on a file beside the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from signoff.errors import Overloaded, SchemaOutdated
from signoff.store import Listener, Topic
from signoff.stores.changes import ChangeFeed
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Read, clock_of
from signoff.stores.migrations import check_schema
from signoff.stores.writer import Tx, Writer

T = TypeVar("T")
log = structlog.get_logger()

READERS = 4
NEWS_POLL_SECONDS = 0.05
LOCK_POLL_SECONDS = 0.001
CHECKPOINT_BYTES = 16 * 1024 * 1024
TRUNCATE_BYTES = 64 * 1024 * 1024
TRUNCATE_WAIT_MS = 200


class Sqlite:
    """A file, or a new one. Every function runs in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._wal_path = path.with_name(path.name + "-wal")
        self._writer_thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(READERS, "sqlite-reader")
        self._writing = _engine(path, begin="BEGIN IMMEDIATE", pool_size=1)
        self._reading = _engine(path, begin="BEGIN", pool_size=READERS)
        self._writer = Writer(
            self._run_group,
            waiting_limit=WAITING_LIMIT,
            group_limit=GROUP_LIMIT,
            timeout_seconds=WRITE_TIMEOUT_SECONDS,
        )
        self._news = ChangeFeed()
        self._watching: asyncio.Task[None] | None = None
        self._lock_file: int | None = None
        self._closed = False

    async def start(self) -> None:
        """Opens the file. Raises SchemaOutdated if it must be made or migrated first."""
        if not self._path.exists():
            raise SchemaOutdated(f"There is no database at {self._path}. Run: signoff migrate")
        await self._in_writer_thread(lambda: self._prepare(check_schema))
        self._writer.start()
        seen = await self._in_writer_thread(lambda: self._pragma("data_version"))
        self._watching = asyncio.get_running_loop().create_task(self._watch(seen))

    async def reshape(self, step: Callable[[Connection], None]) -> None:
        """See `database.Database`; makes the file if there is none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self._in_writer_thread(lambda: self._prepare(step))

    async def read(self, function: Read[T]) -> T:
        """See `database.Database`."""
        return await self.snapshot(lambda conn: function(conn, clock_of(conn)))

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """See `database.Database`; a reading transaction is a snapshot."""

        def run() -> T:
            with self._reading.connect() as conn:
                return function(conn)

        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, run)

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`."""
        return await self._writer.write(operation)

    async def enqueue(self, operation: Callable[[Tx], T]) -> asyncio.Future[T]:
        """See `database.Database`."""
        return await self._writer.enqueue(operation)

    async def count(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`; only one process writes at a time anyway."""
        return await (await self._writer.enqueue(operation))

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._news.listen(listener)

    async def close(self) -> None:
        """Flushes what waits, and lets the file go; the last one to do so leaves no log behind."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._in_writer_thread(self._close)
        self._writer_thread.shutdown()

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        results, news = await self._in_writer_thread(lambda: self._commit(group))
        for topic, name in dict.fromkeys(news):
            self._news.publish(topic, name)
        return results

    async def _in_writer_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, function)

    async def _watch(self, seen: int) -> None:
        """Says `any` when another process has written: on the writing connection, `data_version` counts those alone."""
        while True:
            try:
                version = await self._in_writer_thread(lambda: self._pragma("data_version"))
            except Exception as error:  # noqa: BLE001 -- news are lossy; the next look may find more
                log.warning("could not look whether another process has written", error=repr(error))
                version = seen
            if version != seen:
                self._news.publish("any", "")
            seen = version
            await asyncio.sleep(NEWS_POLL_SECONDS)

    # What follows runs in the writer thread.

    def _prepare(self, step: Callable[[Connection], None]) -> None:
        with self._locked():
            self._pragma("journal_mode=WAL")
            with self._writing.begin() as conn:
                step(conn)

    def _commit(self, group: Callable[[Tx], list[Any]]) -> tuple[list[Any], list[tuple[Topic, str]]]:
        with self._locked():
            try:
                with self._writing.begin() as conn:
                    tx = Tx(conn, clock_of(conn)())
                    results = group(tx)
            except OperationalError as error:  # the file cannot be written: locked from outside, full, gone
                log.warning("SQLite cannot write", error=str(error.orig))
                raise Overloaded("The database cannot write now.") from error
            self._checkpoint()
        return results, tx.changes

    def _checkpoint(self) -> None:
        """Keeps the log short. A reader who is in the way makes it longer, not anybody's write an error."""
        try:
            size_bytes = self._wal_path.stat().st_size
            if size_bytes > TRUNCATE_BYTES:
                self._pragma(f"busy_timeout={TRUNCATE_WAIT_MS}")
                self._pragma("wal_checkpoint(TRUNCATE)")
                self._pragma(f"busy_timeout={WRITE_TIMEOUT_SECONDS * 1000:.0f}")
            elif size_bytes > CHECKPOINT_BYTES:
                self._pragma("wal_checkpoint(PASSIVE)")
        except (OSError, sqlite3.Error) as error:
            log.warning("could not checkpoint", error=str(error))

    def _pragma(self, pragma: str) -> int:
        """The first thing that the writing connection answers, outside of any transaction."""
        connection = self._writing.raw_connection()
        try:
            row = connection.cursor().execute(f"PRAGMA {pragma}").fetchone()
        finally:
            connection.close()
        return row[0] if row else 0

    def _close(self) -> None:
        self._reader_threads.shutdown()
        if self._lock_file is None:
            return
        with self._locked():
            self._reading.dispose()
            self._writing.dispose()
        os.close(self._lock_file)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        if self._lock_file is None:
            self._lock_file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _wait_for_lock(self._lock_file)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def _wait_for_lock(file: int) -> None:
    """Raises Overloaded when another process keeps it for too long: it may have been stopped."""
    deadline = time.monotonic() + WRITE_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Overloaded("Another process has been writing to the database for too long.") from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _engine(path: Path, *, begin: str, pool_size: int) -> Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # what callers say stays out of the log
        connect_args={"check_same_thread": False, "timeout": WRITE_TIMEOUT_SECONDS},
    )
    pragmas = (
        "synchronous=FULL",
        "foreign_keys=ON",
        "wal_autocheckpoint=0",
        "journal_size_limit=0",
        "cache_size=-16000",
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own, late BEGIN would let two transactions deadlock
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(conn: Connection) -> None:
        conn.exec_driver_sql(begin)

    return engine
