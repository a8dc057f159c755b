"""PostgreSQL through asyncpg: pooled reads, grouped writes, and news by NOTIFY.

A connection may be lost at any time. Reads, and writes that were not told to commit yet, are simply done again. When
the answer to a COMMIT is lost, nobody here knows whether it was obeyed, and a move that is made twice would be refused
although it was made; so the server is asked what became of that transaction, and only an aborted one is run again.
"""

from __future__ import annotations

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
FATE_SECONDS = 3600.0
CLOSE_SECONDS = 2.0
IDLE_SECONDS = 5.0
AGAIN_SECONDS = 0.1
MIGRATION_LOCK = 0x5169_6E6F
# The connection is lost, we were silent in a transaction for too long, it was a deadlock's victim, there are too many
# connections, the server stops or starts: https://www.postgresql.org/docs/current/errcodes-appendix.html
PASSING = ("08", "25P03", "40", "53300", "57P0")
NO_TEXT = "22021"
_BEGIN = sa.select(now_us(), sa.cast(sa.func.pg_current_xact_id(), sa.Text))
_FATE = sa.text("SELECT pg_xact_status(CAST(CAST(:xid AS TEXT) AS xid8))")


class Postgres:
    """A database on a server, named by a `postgresql://` address. Who writes, and who counts, has one connection."""

    def __init__(self, url: URL, *, pool_size: int = 10) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._reading = _engine(self._dsn, pool_size, ANSWER_SECONDS, isolation_level="AUTOCOMMIT")
        self._writing = _engine(self._dsn, 1, ANSWER_SECONDS)
        self._counting = _engine(self._dsn, 1, ANSWER_SECONDS)
        self._writer = Writer(
            self._run_group,
            waiting_limit=WAITING_LIMIT,
            group_limit=GROUP_LIMIT,
            timeout_seconds=WRITE_TIMEOUT_SECONDS,
        )
        self._news = ChangeFeed()
        self._notify = PostgresChangeFeed(self._dsn, self._news)
        self._closing = self._closed = False

    async def start(self) -> None:
        """Connects. Raises SchemaOutdated if it must be migrated first, Overloaded when nobody answers."""
        await self.read(lambda conn, _: check_schema(conn))
        self._writer.start()
        self._notify.start()

    async def reshape(self, step: Callable[[Connection], None]) -> None:
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
        with _refusing_zeros():
            return await self._while_it_passes(lambda: self._read(function), READ_SECONDS)

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`."""
        with _refusing_zeros():
            return await self._writer.write(operation)

    async def enqueue(self, operation: Callable[[Tx], T]) -> asyncio.Future[T]:
        """See `database.Database`."""
        return await self._writer.enqueue(operation)

    async def count(self, operation: Callable[[Tx], T]) -> T:
        """See `database.Database`; one at a time, on a connection that is made when the first one comes."""

        def alone(tx: Tx) -> list[T]:
            return [operation(tx)]

        results = await self._while_it_passes(lambda: self._commit(alone, self._counting, FATE_SECONDS), WRITE_SECONDS)
        return results[0]

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._news.listen(listener)

    async def close(self) -> None:
        """Flushes what waits, tells of it, and disconnects."""
        self._closing = True
        await self._writer.close()
        await self._notify.close()
        self._closed = True
        for engine in (self._reading, self._writing, self._counting):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await engine.dispose()

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        return await self._while_it_passes(lambda: self._commit(group, self._writing, READ_SECONDS), WRITE_SECONDS)

    async def _while_it_passes(self, attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Tries again while the trouble is one that passes, up to `seconds` after the first; then raises Overloaded."""
        clock = asyncio.get_running_loop().time
        failed_at, pause = 0.0, 0.0
        while True:
            try:
                return await attempt()
            except Exception as error:
                if not _passes(error):
                    raise
                if not failed_at:
                    failed_at = clock()
                    log.warning("PostgreSQL does not answer; trying again", error=repr(error))
                elif clock() - failed_at > (CLOSE_SECONDS if self._closing else seconds):
                    raise Overloaded("The database does not answer.") from error
            await asyncio.sleep(pause)
            pause = AGAIN_SECONDS

    async def _read(self, function: Read[T]) -> T:
        if self._closed:
            raise Overloaded("The database was closed.")
        async with self._reading.connect() as conn:
            return await conn.run_sync(lambda sync: function(sync, clock_of(sync)))

    async def _commit(self, group: Callable[[Tx], list[Any]], engine: AsyncEngine, away_seconds: float) -> list[Any]:
        async with engine.connect() as conn:
            tx, xid = await conn.run_sync(_begun)
            results = await conn.run_sync(lambda _: group(tx))
            try:
                await conn.commit()
            except Exception as error:
                if not _passes(error) or not await self._was_committed(xid, away_seconds):
                    raise
        for topic, name in dict.fromkeys(tx.changes):
            self._news.publish(topic, name)
        self._notify.publish(tx.changes)
        return results

    async def _was_committed(self, xid: str, away_seconds: float) -> bool:
        """What became of a transaction whose COMMIT got no answer. Raises Overloaded when that cannot be found out: for
        so long the server may be away.
        """

        def look() -> Awaitable[str]:
            return self._read(lambda conn, _: conn.execute(_FATE, {"xid": xid}).scalar_one())

        try:
            async with asyncio.timeout(max(away_seconds, WRITE_TIMEOUT_SECONDS)):
                while True:
                    fate = await self._while_it_passes(look, away_seconds)
                    if fate in {"committed", "aborted"}:
                        return fate == "committed"
                    await asyncio.sleep(AGAIN_SECONDS)
        except Exception as error:
            raise Overloaded("The database was lost while it wrote; nobody knows whether it did.") from error


@contextlib.contextmanager
def _refusing_zeros() -> Generator[None]:
    """Raises BadRequest for a text with a zero byte: no column of PostgreSQL's holds one."""
    try:
        yield
    except DBAPIError as error:
        if _state_of(error) != NO_TEXT:
            raise
        raise BadRequest("A text has no zero bytes.") from None


def _begun(conn: Connection) -> tuple[Tx, str]:
    """A transaction, and the name under which the server remembers what became of it."""
    now, xid = conn.execute(_BEGIN).one()
    return Tx(conn, now), xid


def _passes(error: Exception) -> bool:
    """Whether the same may work on another connection, or a little later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state_of(error).startswith(PASSING)
    return isinstance(error, (OSError, PoolTimeout))


def _state_of(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", ""))


def _engine(dsn: str, pool_size: int, answer_seconds: float | None, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: _connected(dsn, answer_seconds),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        hide_parameters=True,  # what callers say stays out of the log
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _give_up_the_silent)
    return engine


def _give_up_the_silent(context: ExceptionContext) -> None:
    """One connection that did not answer in time is enough to replace all that are as old."""
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True


async def _connected(dsn: str, answer_seconds: float | None) -> Any:
    """A connection. Should this process be stopped or cut off in a transaction, its locks are given back."""
    conn = await connect(dsn, timeout=CONNECT_SECONDS, command_timeout=answer_seconds)
    if answer_seconds is None:
        return conn
    try:
        await conn.execute(f"SET idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000:.0f}")
    except Exception as error:
        conn.terminate()
        raise ConnectionError(f"The connection was lost as soon as it was made: {error}") from error
    return conn
