"""SQLite: one writer thread for each process, and one writing process at a time.

SQLite before 3.51.3 can corrupt a write-ahead log that one connection writes while another checkpoints.
So every write, checkpoint and close happens under an advisory lock on a file beside the database.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
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
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.sqlite_changes import SqliteChangeFeed
from signoff.stores.transaction import Tx
from signoff.stores.writer import RowUpdate, Writer

T = TypeVar("T")
log = structlog.get_logger()

READERS = 4
# Without a socket that other processes send to, and with one: then only lost datagrams have to be made up for.
CHANGE_POLL_SECONDS = 0.05
LOST_CHANGE_POLL_SECONDS = 1.0
LOCK_POLL_SECONDS = 0.001
# A checkpoint delays the next writes by some ten milliseconds. So it waits for a pause between writes, if one comes.
PAUSE_SECONDS = 0.2
PAUSE_CHECKPOINT_BYTES = 1024 * 1024
CHECKPOINT_BYTES = 64 * 1024 * 1024
TRUNCATE_BYTES = 128 * 1024 * 1024
# Share of the free space of the disk that the log may take before it is checkpointed at once, so as not to fill it.
FREE_SHARE = 1 / 8
TRUNCATE_WAIT_MS = 200


class Sqlite:
    """A SQLite file; see `database.Database`. Functions run in a writer thread or in one of the reader threads."""

    def __init__(self, path: Path, *, signer: ReceiptSigner | None = None) -> None:
        self._path = path
        self._signer = signer
        self._lock_path = path.with_name(path.name + ".lock")
        self._wal_path = path.with_name(path.name + "-wal")
        self._writer_thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(READERS, "sqlite-reader")
        self._writing = _engine(path, begin="BEGIN IMMEDIATE", pool_size=1)
        self._reading = _engine(path, begin="BEGIN", pool_size=READERS)
        self._writer = Writer(
            self._run_group, waiting_limit=WAITING_LIMIT, group_limit=GROUP_LIMIT, timeout_seconds=WRITE_TIMEOUT_SECONDS
        )
        self._point_reads: sqlite3.Connection | None = None
        self._changes = ChangeFeed()
        self._other_processes = SqliteChangeFeed(path.with_name(path.name + "-sockets"), self._changes)
        self._watcher: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._lock_file: int | None = None
        self._closed = False

    async def start(self) -> None:
        """Open the file. Raises SchemaOutdated if it does not exist or must be migrated first."""
        if not self._path.exists():
            raise SchemaOutdated(f"There is no database at {self._path}. Run: signoff migrate")
        await self._in_writer_thread(lambda: self._prepare(check_schema))
        self._writer.start()
        self._point_reads = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        version = await self._in_writer_thread(lambda: self._pragma("data_version"))
        poll_seconds = LOST_CHANGE_POLL_SECONDS if self._other_processes.start() else CHANGE_POLL_SECONDS
        self._watcher = asyncio.get_running_loop().create_task(self._watch(version, poll_seconds))

    async def change_schema(self, step: Callable[[Connection], None]) -> None:
        """See `database.Database`. Create the file if there is none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self._in_writer_thread(lambda: self._prepare(step))

    async def read(self, function: Read[T]) -> T:
        """See `database.Database`."""
        return await self.snapshot(lambda conn: function(conn, clock_of(conn)))

    def read_at_once(self, query: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]] | None:
        """See `database.Database`. Not every lookup should pay for two changes of threads."""
        if self._point_reads is None:
            return None
        try:
            return self._point_reads.execute(query, parameters).fetchall()
        except sqlite3.Error:  # a reader thread can wait for a lock, and tells what is wrong otherwise
            return None

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """See `database.Database`. In SQLite, each read transaction is a snapshot."""

        def run() -> T:
            with self._reading.connect() as conn:
                return function(conn)

        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, run)

    async def write(self, operation: Callable[[Tx], T] | RowUpdate, *, lock_key: str | None = None) -> T:
        """See `database.Database`."""
        return await self._writer.write(operation, lock_key=lock_key)

    async def write_lease(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`. Only one process writes at a time anyway, so this is an ordinary write."""
        return await self._writer.write(operation)

    def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> Awaitable[asyncio.Future[T]]:
        """See `database.Database`."""
        return self._writer.defer(operation, at_once=at_once)

    async def write_alone(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`. Only one process writes at a time anyway, so this is an ordinary write."""
        return await (await self._writer.enqueue(operation))

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._changes.listen(listener)

    async def close(self) -> None:
        """Write what is queued, and close the file. The last process that does so removes the write-ahead log."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._other_processes.close()
        if self._pause is not None:
            self._pause.cancel()
        await self._in_writer_thread(self._close)
        self._writer_thread.shutdown()

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        results, changes = await self._in_writer_thread(lambda: self._commit(group))
        self._schedule_checkpoint()
        self._other_processes.publish(changes)
        for topic, name in dict.fromkeys(changes):
            self._changes.publish(topic, name)
        return results

    def _schedule_checkpoint(self) -> None:
        """Checkpoint before the next group if the log is long, else in the next pause; no caller waits for it."""
        if self._pause is not None:
            self._pause.cancel()
        wal_bytes = self._wal_bytes()
        if wal_bytes > CHECKPOINT_BYTES or (wal_bytes > PAUSE_CHECKPOINT_BYTES and wal_bytes > self._wal_room()):
            self._writer_thread.submit(self._checkpoint)
        else:
            self._pause = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._checkpoint_in_pause)

    def _checkpoint_in_pause(self) -> None:
        if self._wal_bytes() > PAUSE_CHECKPOINT_BYTES:
            self._writer_thread.submit(self._checkpoint)

    def _wal_bytes(self) -> int:
        try:
            return self._wal_path.stat().st_size
        except OSError:
            return 0

    def _wal_room(self) -> float:
        """Return the bytes that the log may take of the free space of its disk."""
        try:
            disk = os.statvfs(self._path)
        except OSError:
            return math.inf
        return disk.f_bavail * disk.f_frsize * FREE_SHARE

    async def _in_writer_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, function)

    async def _watch(self, last_version: int, poll_seconds: float) -> None:
        """Publish `any` when another process has written since the last look.

        On the writer's connection, `data_version` changes only with commits of other connections.
        """
        while True:
            try:
                version = await self._in_writer_thread(lambda: self._pragma("data_version"))
            except Exception as error:  # noqa: BLE001 -- notifications may be lost; the next poll may succeed
                log.warning("sqlite_change_poll_failed", error=repr(error))
                version = last_version
            if version != last_version:
                self._changes.publish("any", "")
            last_version = version
            await asyncio.sleep(poll_seconds)

    # The following methods run in the writer thread.

    def _prepare(self, step: Callable[[Connection], None]) -> None:
        with self._locked():
            _make_private(self._path)
            self._pragma("journal_mode=WAL")
            with self._writing.begin() as conn:
                step(conn)

    def _commit(self, group: Callable[[Tx], list[Any]]) -> tuple[list[Any], list[tuple[Topic, str]]]:
        with self._locked():
            try:
                with self._writing.begin() as conn:
                    tx = Tx(conn, clock_of(conn)(), signer=self._signer)
                    results = group(tx)
            # For example a foreign lock, a full disk, or a deleted file.
            except (OperationalError, sqlite3.OperationalError) as error:
                log.warning("sqlite_write_failed", error=str(getattr(error, "orig", error)))
                self._truncate_log()  # which makes room on a disk that is full
                raise Overloaded("The database cannot be written now; try again later.") from error
        return results, tx.changes

    def _checkpoint(self) -> None:
        """Checkpoint the write-ahead log. A failure, for example due to a long read, only delays that."""
        try:
            with self._locked():
                if self._wal_bytes() > min(TRUNCATE_BYTES, 2 * self._wal_room()):
                    self._truncate_log()
                else:
                    self._pragma("wal_checkpoint(PASSIVE)")
        except (OSError, sqlite3.Error, Overloaded) as error:
            log.warning("sqlite_checkpoint_failed", error=str(error))

    def _truncate_log(self) -> None:
        """Checkpoint the log, and give its space back to the disk, unless a reader needs it for longer."""
        try:
            self._pragma(f"busy_timeout={TRUNCATE_WAIT_MS}")
            try:
                self._pragma("wal_checkpoint(TRUNCATE)")
            finally:
                self._pragma(f"busy_timeout={WRITE_TIMEOUT_SECONDS * 1000:.0f}")
        except (OperationalError, sqlite3.Error) as error:
            log.warning("sqlite_checkpoint_failed", error=str(error))

    def _pragma(self, pragma: str) -> int:
        """Run a pragma on the writer's connection, outside of transactions, and return the first value it returns."""
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
            if self._point_reads is not None:
                self._point_reads.close()
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


def _make_private(path: Path) -> None:
    """Create the database file if it is missing, and let only its owner read it, whatever its folder allows.

    SQLite gives the files beside it the same mode.
    """
    path.touch(mode=0o600, exist_ok=True)
    with contextlib.suppress(OSError):  # a file of somebody else keeps its mode
        for each in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if each.exists() and each.stat().st_mode & 0o077:
                each.chmod(0o600)


def _wait_for_lock(file: int) -> None:
    """Acquire the lock. Raises Overloaded if another process, perhaps a suspended one, holds it too long."""
    deadline = time.monotonic() + WRITE_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Overloaded("Another process holds the write lock of the database; try again later.") from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _engine(path: Path, *, begin: str, pool_size: int) -> Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # keep callers' data out of the log
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
        connection.isolation_level = None  # the driver would begin late, so that two transactions could deadlock
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(conn: Connection) -> None:
        conn.exec_driver_sql(begin)

    return engine
