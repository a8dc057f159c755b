"""Connections to PostgreSQL: directly, or through a pooler; and what to tell the operator if none can be opened.

A pooler in transaction mode, such as PgBouncer, gives each transaction another connection of the server, on which
earlier prepared statements and settings are missing. So everything is one transaction there, statements have no names,
and nothing is set beyond a transaction.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

import asyncpg
from sqlalchemy import ExceptionContext, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from signoff.core.postgres_address import PostgresAddress

connect = cast("Any", asyncpg).connect  # asyncpg has no type annotations
PostgresError = cast("type[Exception]", cast("Any", asyncpg).PostgresError)
ClientError = cast("type[Exception]", cast("Any", asyncpg).InterfaceError)

IDLE_SECONDS = 5.0
# Time for a connection that is not needed any more, so that it need not be cut off while it is opened.
SETTLE_SECONDS = 0.5
# Connection failures, idle_in_transaction_session_timeout, rollbacks such as deadlocks, too many connections, and
# shutdown or start of the server: https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT = ("08", "25P03", "40", "53300", "57P0")
DATABASE_MISSING, LOGIN_REFUSED, UNKNOWN_PARAMETER, UNSUPPORTED_BY_POOLER = "3D000", "28", "42704", "08P01"


class CannotConnect(ConnectionError):
    """No connection to PostgreSQL could be opened. The message is for the operator, and contains no password."""

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent
        """True if only a change of the address or of the server can help, so that waiting is of no use."""


class PooledDialect(PGDialect_asyncpg):
    """The dialect of SQLAlchemy, for connections through a pooler: the set-up of a connection is a transaction."""

    supports_statement_cache = True

    async def setup_asyncpg_json_codec(self, conn: Any) -> None:
        """Set up a codec, which queries the server."""
        async with conn._connection.transaction():  # noqa: SLF001 -- as SQLAlchemy does
            await cast("Any", super()).setup_asyncpg_json_codec(conn)

    async def setup_asyncpg_jsonb_codec(self, conn: Any) -> None:
        """Set up a codec, which queries the server."""
        async with conn._connection.transaction():  # noqa: SLF001 -- as SQLAlchemy does
            await cast("Any", super()).setup_asyncpg_jsonb_codec(conn)


registry.register("postgresql.pooled", __name__, "PooledDialect")


async def open_connection(
    address: PostgresAddress, answer_seconds: float | None, *, is_pooled: bool = False, **options: Any
) -> Any:
    """Open a connection of asyncpg, whose queries must be answered within `answer_seconds`. Raises CannotConnect."""
    if is_pooled:
        options["statement_cache_size"] = 0
    if address.uses_system_certificates:
        options["ssl"] = ssl.create_default_context()
    try:
        return await _connect(address.dsn, timeout=address.connect_seconds, command_timeout=answer_seconds, **options)
    except (OSError, PostgresError, ClientError, ValueError) as error:
        raise _describe(error, address) from error


async def _connect(dsn: str, **options: Any) -> Any:
    """Connect as asyncpg does. If cancelled, let the attempt end first, or asyncpg leaves an unretrieved exception."""
    connecting = asyncio.get_running_loop().create_task(connect(dsn, **options))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([connecting], timeout=SETTLE_SECONDS)
        finally:
            connecting.add_done_callback(_discard)
            connecting.cancel()
        raise


def _discard(connecting: asyncio.Task[Any]) -> None:
    """Close the connection if there is one, and retrieve the error otherwise."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


async def is_behind_pooler(address: PostgresAddress) -> bool:
    """Return True if a pooler is between this process and the server; ask the server unless the address says so.

    A pooler invents the process id that a client gets when it connects. Raises CannotConnect.
    """
    if address.is_pooled is not None:
        return address.is_pooled
    conn = await open_connection(address, address.connect_seconds, is_pooled=True)
    try:
        async with conn.transaction():
            return conn.get_server_pid() != await conn.fetchval("SELECT pg_backend_pid()")
    except (OSError, PostgresError, ClientError) as error:
        raise _describe(error, address) from error
    finally:
        await conn.close(timeout=1)


def make_engine(
    address: PostgresAddress, pool_size: int, answer_seconds: float | None, *, is_pooled: bool, **options: Any
) -> AsyncEngine:
    """Return an engine whose connections are opened when they are needed."""
    engine: AsyncEngine

    async def open_one() -> Any:
        conn = await open_connection(address, answer_seconds, is_pooled=is_pooled)
        return conn if is_pooled or answer_seconds is None else await _set_up(conn)

    if is_pooled:
        options["creator"] = lambda: _adapt_unprepared(engine, open_one)
    else:
        options["async_creator"] = open_one
    engine = create_async_engine(
        "postgresql+pooled://" if is_pooled else "postgresql+asyncpg://",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=address.connect_seconds,
        hide_parameters=True,  # keep callers' data out of the log
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _replace_silent_connections)
    return engine


def _adapt_unprepared(engine: AsyncEngine, open_one: Callable[[], Awaitable[Any]]) -> Any:
    """Return a connection for SQLAlchemy whose statements have no names."""
    dbapi = cast("Any", engine.sync_engine.dialect.dbapi)
    return dbapi.connect(
        async_creator_fn=open_one, prepared_statement_cache_size=0, prepared_statement_name_func=lambda: ""
    )


async def _set_up(conn: Any) -> Any:
    """Apply the settings of a session.

    The server releases the locks if this process is suspended or cut off in a transaction. It reads small tables by an
    index too, because it keeps the plans of statements, which must still fit when the tables have grown.
    """
    idle_ms = f"{IDLE_SECONDS * 1000:.0f}"
    settings = {"idle_in_transaction_session_timeout": idle_ms, "enable_seqscan": "off", "jit": "off"}
    try:
        await conn.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()))
    except Exception as error:
        conn.terminate()
        raise ConnectionError(f"The connection to PostgreSQL was lost as soon as it was open: {error}") from error
    return conn


def _replace_silent_connections(context: ExceptionContext) -> None:
    """Replace all connections of the pool when one did not answer in time: the others are probably dead too."""
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True


def _describe(error: Exception, address: PostgresAddress) -> CannotConnect:
    """Return the error for the operator, which names the database and the cause."""
    state, text = str(getattr(error, "sqlstate", "")), _first_line(error)
    is_permanent = not (state.startswith(TRANSIENT) if state else isinstance(error, OSError))
    match error:
        case _ if state == DATABASE_MISSING:
            cause = f": {text}. Create it, or correct `database_url`."
        case _ if state.startswith(LOGIN_REFUSED):
            cause = f" refuses the login: {text}."
        case _ if state in {UNKNOWN_PARAMETER, UNSUPPORTED_BY_POOLER}:
            cause, is_permanent = f": {text}. Remove the parameter from `database_url`.", True
        case ssl.SSLError():
            cause, is_permanent = f": TLS failed: {getattr(error, 'verify_message', '') or text}.", True
        case TimeoutError():
            cause = f" does not answer within {address.connect_seconds:g} s."
        case OSError():
            reason = "connection refused" if "Connect call failed" in text else error.strerror or text
            cause = f" cannot be reached: {reason}."
        case _:
            cause = f": {text}."
    return CannotConnect(f"PostgreSQL at {address.public_name}{cause}", is_permanent=is_permanent)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else repr(error)
