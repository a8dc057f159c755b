"""PostgreSQL through asyncpg: pooled reads, grouped writes, and change notifications by NOTIFY.

A connection may be lost at any time. Reads are repeated then, and so are writes before their COMMIT. If the answer to a
COMMIT is lost, the transaction may have been committed or not, and to run it again could report a transition as stale
that was made. So the server is queried for the status of the transaction, and only an aborted one runs again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import URL, Connection, ExceptionContext, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from signoff.errors import BadRequest, Overloaded
from signoff.store import Listener
from signoff.stores.changes import ChangeFeed
from signoff.stores.clock import now_us
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Read, clock_of
from signoff.stores.migrations import check_schema
from signoff.stores.postgres_changes import PostgresChangeFeed, connect
from signoff.stores.writer import Tx, Writer

T = TypeVar("T")
log = structlog.get_logger()

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 10.0
READ_SECONDS = 5.0
WRITE_SECONDS = 10.0
COUNTER_STATUS_SECONDS = 3600.0
CLOSE_SECONDS = 2.0
IDLE_SECONDS = 5.0
RETRY_SECONDS = 0.1
MIGRATION_LOCK = 0x5169_6E6F
# Connection failures, idle_in_transaction_session_timeout, rollbacks such as deadlocks, too many connections, and
# shutdown or start of the server: https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT = ("08", "25P03", "40", "53300", "57P0")
CHARACTER_NOT_IN_REPERTOIRE = "22021"
_BEGIN = sa.select(now_us(), sa.cast(sa.func.pg_current_xact_id(), sa.Text))
_STATUS = sa.text("SELECT pg_xact_status(CAST(CAST(:xid AS TEXT) AS xid8))")


class Postgres:
    """A PostgreSQL database; see `database.Database`.

    Grouped writes and counters have one connection each, reads have a pool.
    """

    def __init__(self, url: URL, *, pool_size: int = 10) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._reading = _engine(self._dsn, pool_size, ANSWER_SECONDS, isolation_level="AUTOCOMMIT")
        self._writing = _engine(self._dsn, 1, ANSWER_SECONDS)
        self._counting = _engine(self._dsn, 1, ANSWER_SECONDS)
        self._writer = Writer(
            self._run_group, waiting_limit=WAITING_LIMIT, group_limit=GROUP_LIMIT, timeout_seconds=WRITE_TIMEOUT_SECONDS
        )
        self._changes = ChangeFeed()
        self._feed = PostgresChangeFeed(self._dsn, self._changes)
        self._closing = self._closed = False

    async def start(self) -> None:
        """Connect. Raises SchemaOutdated if the schema must be migrated, Overloaded if the server does not answer."""
        await self.read(lambda conn, _: check_schema(conn))
        self._writer.start()
        self._feed.start()

    async def change_schema(self, step: Callable[[Connection], None]) -> None:
        """See `database.Database`."""
        engine = _engine(self._dsn, 1, answer_seconds=None)
        try:
            async with engine.begin() as conn:
                await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                await conn.run_sync(step)
        finally:
            await engine.dispose()

    async def snapshot(self, function: Callable[[Connection], T]) -> T:
        """See `database.Database`."""
        engine = _engine(self._dsn, 1, answer_seconds=None, isolation_level="REPEATABLE READ")
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

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`."""
        with _rejecting_nul():
            return await self._writer.write(operation)

    async def defer(self, operation: Callable[[Tx], T], *, at_once: bool = False) -> asyncio.Future[T]:
        """See `database.Database`."""
        return await self._writer.defer(operation, at_once=at_once)

    async def write_alone(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`. One operation at a time, on a connection that is opened for the first one."""

        def group(tx: Tx) -> list[T]:
            return [operation(tx)]

        results = await self._retry(lambda: self._commit(group, self._counting, COUNTER_STATUS_SECONDS), WRITE_SECONDS)
        return results[0]

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._changes.listen(listener)

    async def close(self) -> None:
        """Write what is queued, notify other processes of it, and disconnect."""
        self._closing = True
        await self._writer.close()
        await self._feed.close()
        self._closed = True
        for engine in (self._reading, self._writing, self._counting):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await engine.dispose()

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        return await self._retry(lambda: self._commit(group, self._writing, READ_SECONDS), WRITE_SECONDS)

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
        async with self._reading.connect() as conn:
            return await conn.run_sync(lambda sync: function(sync, clock_of(sync)))

    async def _commit(self, group: Callable[[Tx], list[Any]], engine: AsyncEngine, away_seconds: float) -> list[Any]:
        async with engine.connect() as conn:
            tx, xid = await conn.run_sync(_begin)
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
            raise Overloaded("The database was lost during a commit, and its result is not known.") from error


@contextlib.contextmanager
def _rejecting_nul() -> Generator[None]:
    """Raise BadRequest for a text with a NUL character, which PostgreSQL cannot store."""
    try:
        yield
    except DBAPIError as error:
        if _state_of(error) != CHARACTER_NOT_IN_REPERTOIRE:
            raise
        raise BadRequest("A text contains a NUL character (U+0000); remove it.") from None


def _begin(conn: Connection) -> tuple[Tx, str]:
    """Return a transaction and its id on the server, for which `_was_committed` can query later."""
    now, xid = conn.execute(_BEGIN).one()
    return Tx(conn, now), xid


def _is_transient(error: Exception) -> bool:
    """Return True if the operation may succeed on another connection, or a little later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state_of(error).startswith(TRANSIENT)
    return isinstance(error, (OSError, PoolTimeout))


def _state_of(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", ""))


def _engine(dsn: str, pool_size: int, answer_seconds: float | None, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: _connect(dsn, answer_seconds),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        hide_parameters=True,  # keep callers' data out of the log
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _replace_silent_connections)
    return engine


def _replace_silent_connections(context: ExceptionContext) -> None:
    """Replace all connections of the pool when one did not answer in time: the others are probably dead too."""
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True


async def _connect(dsn: str, answer_seconds: float | None) -> Any:
    """Open a connection. If this process is suspended or cut off in a transaction, the server releases its locks."""
    conn = await connect(dsn, timeout=CONNECT_SECONDS, command_timeout=answer_seconds)
    if answer_seconds is None:
        return conn
    try:
        await conn.execute(f"SET idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000:.0f}")
    except Exception as error:
        conn.terminate()
        raise ConnectionError(f"The connection to PostgreSQL was lost as soon as it was open: {error}") from error
    return conn
