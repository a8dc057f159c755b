"""PostgreSQL through asyncpg: pooled reads, grouped writes, and change notifications by NOTIFY.

A connection may be lost at any time. Reads are repeated then, and so are writes before their COMMIT. If the answer to a
COMMIT is lost, the transaction may have been committed or not, and to run it again could report a transition as stale
that was made. So the server is queried for the status of the transaction, and only an aborted one runs again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from signoff.core.postgres_address import PostgresAddress
from signoff.errors import BadRequest, Overloaded
from signoff.store import Listener
from signoff.stores.changes import ChangeFeed
from signoff.stores.clock import now_us
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Read, clock_of
from signoff.stores.migrations import check_schema
from signoff.stores.postgres_changes import PostgresChangeFeed
from signoff.stores.postgres_connection import (
    IDLE_SECONDS,
    TRANSIENT,
    is_behind_pooler,
    make_engine,
)
from signoff.stores.receipt_signer import ReceiptSigner
from signoff.stores.transaction import Tx
from signoff.stores.writer import RowUpdate, RunGroup, Writer

T = TypeVar("T")
log = structlog.get_logger()

ANSWER_SECONDS = 10.0
READ_SECONDS = 5.0
WRITE_SECONDS = 10.0
COUNTER_STATUS_SECONDS = 3600.0
CLOSE_SECONDS = 2.0
RETRY_SECONDS = 0.1
MIGRATION_LOCK = 0x5169_6E6F  # key of an advisory lock; all versions must use the same
# While a migration waits for the lock of a table, all others who need the table wait behind it.
TABLE_LOCK_SECONDS = 2.0
TABLE_LOCK_PAUSE_SECONDS = 1.0
TABLES_IN_USE_SECONDS = 300.0
CHARACTER_NOT_IN_REPERTOIRE, LOCK_NOT_AVAILABLE = "22021", "55P03"
_BEGIN = sa.select(now_us(), sa.cast(sa.func.pg_current_xact_id(), sa.Text))
# A commit of leases does not wait for the disk; the next commit that waits brings it to the disk as well.
_BEGIN_LEASES = sa.select(*_BEGIN.selected_columns, sa.func.set_config("synchronous_commit", "off", True))
_STATUS = sa.text("SELECT pg_xact_status(CAST(CAST(:xid AS TEXT) AS xid8))")

# On a connection of a pooler, this setting must end with its transaction.
_LIMIT_TABLE_LOCKS = sa.text(f"SET LOCAL lock_timeout = '{TABLE_LOCK_SECONDS * 1000:.0f}ms'")
_LIMIT_IDLE = sa.text("SELECT set_config('idle_in_transaction_session_timeout', :idle, true)")


class _Engines:
    """Engines for the reads, the grouped writes, the leases of reviews, and the counters of one database."""

    def __init__(self, address: PostgresAddress, readers: int, *, is_pooled: bool) -> None:
        # One read needs no transaction, unless the pooler would take the connection between two messages of it.
        reading = {} if is_pooled else {"isolation_level": "AUTOCOMMIT"}
        self.reading = make_engine(address, readers, ANSWER_SECONDS, is_pooled=is_pooled, **reading)
        self.writing = make_engine(address, 1, ANSWER_SECONDS, is_pooled=is_pooled)
        self.leasing = make_engine(address, 1, ANSWER_SECONDS, is_pooled=is_pooled)
        self.counting = make_engine(address, 1, ANSWER_SECONDS, is_pooled=is_pooled)

    def all(self) -> tuple[AsyncEngine, ...]:
        """Return the engines in the order in which they are closed."""
        return self.reading, self.writing, self.leasing, self.counting


class Postgres:
    """A PostgreSQL database; see `database.Database`.

    Grouped writes, leases and counters have one connection each, reads have a pool.
    """

    def __init__(self, address: PostgresAddress, *, pool_size: int = 10, signer: ReceiptSigner | None = None) -> None:
        self._address = address
        self._signer = signer
        self._pool_size = pool_size
        self._is_pooled: bool | None = None
        self._engines: _Engines | None = None
        self._writer = _writer(self._run_group)
        self._lease_writer = _writer(self._run_lease_group)
        self._changes = ChangeFeed()
        self._feed = PostgresChangeFeed(address, self._changes)
        self._closing = self._closed = False

    async def start(self) -> None:
        """Connect. Raises SchemaOutdated if the schema must be migrated, CannotConnect if there is no connection.

        Behind a pooler, no notifications can be received; polling, which makes up for lost ones, replaces them.
        """
        is_pooled = await self._pooled()
        self._engines = _Engines(self._address, self._pool_size, is_pooled=is_pooled)
        await self.read(lambda conn, _: check_schema(conn))
        self._writer.start()
        self._lease_writer.start()
        if is_pooled:
            log.debug("postgres_pooler_found", effect="changes of other processes are seen by polling")
        else:
            self._feed.start()

    async def change_schema(self, step: Callable[[Connection], None]) -> None:
        """See `database.Database`."""
        engine = make_engine(self._address, 1, answer_seconds=None, is_pooled=await self._pooled())
        clock = asyncio.get_running_loop().time
        deadline = clock() + TABLES_IN_USE_SECONDS
        try:
            while not await _change_schema(engine, step):
                if clock() > deadline:
                    raise Overloaded(
                        "The schema was not changed: other transactions used its tables for "
                        f"{TABLES_IN_USE_SECONDS:.0f} seconds. End those that pg_stat_activity lists, and try again."
                    )
                log.warning("schema_change_blocked", effect="other transactions use its tables; it begins again")
                await asyncio.sleep(TABLE_LOCK_PAUSE_SECONDS)
        finally:
            await engine.dispose()

    def read_at_once(self, query: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]] | None:
        """See `database.Database`. A server is always waited for."""
        return None

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """See `database.Database`."""
        options = {"isolation_level": "REPEATABLE READ"}
        engine = make_engine(self._address, 1, answer_seconds=None, is_pooled=await self._pooled(), **options)
        try:
            async with engine.connect() as conn:
                await conn.execution_options(postgresql_readonly=True)
                return await conn.run_sync(function)
        finally:
            await engine.dispose()

    async def read(self, function: Read[T]) -> T:
        """See `database.Database`."""
        with _rejecting_nul():
            return await self._retry(lambda: self._read(function), READ_SECONDS)

    async def write(self, operation: Callable[[Tx], T] | RowUpdate, *, lock_key: str | None = None) -> T:
        """See `database.Database`."""
        with _rejecting_nul():
            return await self._writer.write(operation, lock_key=lock_key)

    async def write_lease(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`."""
        with _rejecting_nul():
            return await self._lease_writer.write(operation)

    def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> Awaitable[asyncio.Future[T]]:
        """See `database.Database`."""
        return self._writer.defer(operation, at_once=at_once)

    async def write_alone(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`. One operation at a time, on a connection that is opened for the first one."""

        def group(tx: Tx) -> list[T]:
            result = operation(tx)
            tx.flush_sums()
            return [result]

        counting = self._open_engines().counting
        results = await self._retry(lambda: self._commit(group, counting, COUNTER_STATUS_SECONDS), WRITE_SECONDS)
        return results[0]

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._changes.listen(listener)

    async def close(self) -> None:
        """Write what is queued, notify other processes of it, and disconnect."""
        self._closing = True
        await self._lease_writer.close()
        await self._writer.close()
        await self._feed.close()
        self._closed = True
        for engine in self._engines.all() if self._engines else ():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await engine.dispose()

    async def _pooled(self) -> bool:
        """Return True if there is a pooler before the database; ask the server once. Raises CannotConnect."""
        if self._is_pooled is None:
            self._is_pooled = await is_behind_pooler(self._address)
        return self._is_pooled

    def _open_engines(self) -> _Engines:
        if self._engines is None:
            raise Overloaded("The database was not opened.")
        return self._engines

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        writing = self._open_engines().writing
        return await self._retry(lambda: self._commit(group, writing, READ_SECONDS), WRITE_SECONDS)

    async def _run_lease_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        leasing = self._open_engines().leasing
        return await self._retry(lambda: self._commit(group, leasing, READ_SECONDS, _BEGIN_LEASES), WRITE_SECONDS)

    async def _retry(self, attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Repeat `attempt` after transient errors, until `seconds` after the first one; then raise Overloaded."""
        clock = asyncio.get_running_loop().time
        failed_at, pause = 0.0, 0.0
        while True:
            try:
                return await attempt()
            except Exception as error:
                if not _is_transient(error):
                    raise
                if not failed_at:
                    failed_at = clock()
                    log.warning("postgres_unavailable", error=repr(error))
                elif clock() - failed_at > (CLOSE_SECONDS if self._closing else seconds):
                    raise Overloaded("The database does not answer; try again later.") from error
            await asyncio.sleep(pause)
            pause = RETRY_SECONDS

    async def _read(self, function: Read[T]) -> T:
        if self._closed:
            raise Overloaded("The database was closed.")
        async with self._open_engines().reading.connect() as conn:
            return await conn.run_sync(lambda sync: function(sync, clock_of(sync)))

    async def _commit(
        self,
        group: Callable[[Tx], list[Any]],
        engine: AsyncEngine,
        away_seconds: float,
        begin: sa.Executable = _BEGIN,
    ) -> list[Any]:
        async with engine.connect() as conn:
            if self._is_pooled:
                await conn.execute(_LIMIT_IDLE, {"idle": f"{IDLE_SECONDS * 1000:.0f}ms"})
            tx, xid = await conn.run_sync(lambda sync: _begin(sync, begin, self._signer))
            results = await conn.run_sync(lambda _: group(tx))
            try:
                await conn.commit()
            except Exception as error:
                if not _is_transient(error) or not await self._was_committed(xid, away_seconds):
                    raise
        for topic, name in dict.fromkeys(tx.changes):
            self._changes.publish(topic, name)
        self._feed.publish(tx.changes)
        return results

    async def _was_committed(self, xid: str, away_seconds: float) -> bool:
        """Return True if a transaction whose COMMIT got no answer was committed.

        Raises Overloaded if the server does not tell, after it was away for `away_seconds`.
        """

        def query_status() -> Awaitable[str]:
            return self._read(lambda conn, _: conn.execute(_STATUS, {"xid": xid}).scalar_one())

        try:
            async with asyncio.timeout(max(away_seconds, WRITE_TIMEOUT_SECONDS)):
                while True:
                    status = await self._retry(query_status, away_seconds)
                    if status in {"committed", "aborted"}:
                        return status == "committed"
                    await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            raise Overloaded("The database was lost during a commit; look for its result before a retry.") from error


async def _change_schema(engine: AsyncEngine, step: Callable[[Connection], None]) -> bool:
    """Run `step` in one transaction, and return True; roll it back and return False if a table is in use for long."""
    try:
        async with engine.begin() as conn:
            await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await conn.execute(_LIMIT_TABLE_LOCKS)
            await conn.run_sync(step)
    except DBAPIError as error:
        if _state_of(error) != LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


def _writer(run_group: RunGroup) -> Writer:
    return Writer(
        run_group, waiting_limit=WAITING_LIMIT, group_limit=GROUP_LIMIT, timeout_seconds=WRITE_TIMEOUT_SECONDS
    )


@contextlib.contextmanager
def _rejecting_nul() -> Generator[None]:
    """Raise BadRequest for a text with a NUL character, which PostgreSQL cannot store."""
    try:
        yield
    except DBAPIError as error:
        if _state_of(error) != CHARACTER_NOT_IN_REPERTOIRE:
            raise
        raise BadRequest("A text contains a NUL character (U+0000); remove it.") from None


def _begin(conn: Connection, statement: sa.Executable, signer: ReceiptSigner | None) -> tuple[Tx, str]:
    """Return a transaction and its id on the server, for which `_was_committed` can query later."""
    now, xid, *_ = conn.execute(statement).one()
    return Tx(conn, now, signer=signer), xid


def _is_transient(error: Exception) -> bool:
    """Return True if the operation may succeed on another connection, or a little later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state_of(error).startswith(TRANSIENT)
    return isinstance(error, (OSError, PoolTimeout))


def _state_of(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", ""))
