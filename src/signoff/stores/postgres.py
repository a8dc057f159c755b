"""PostgreSQL through asyncpg: pooled reads, grouped writes, and news by NOTIFY."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from signoff.store import Listener, Topic
from signoff.stores.database import GROUP_LIMIT, WAITING_LIMIT, WRITE_TIMEOUT_SECONDS, Read, clock_of
from signoff.stores.migrations import check_schema, migrate_schema
from signoff.stores.writer import Rows, Tx, Writer

T = TypeVar("T")
log = structlog.get_logger()
connect = cast("Any", asyncpg).connect  # it has no types of its own

CHANNEL = "signoff"
NOTIFY_BYTES = 7900  # PostgreSQL takes payloads under 8000 bytes
RECONNECT_SECONDS = 1.0
MIGRATION_LOCK = 0x5169_6E6F


class Postgres:
    """A database on a server, named by a `postgresql://` address."""

    def __init__(self, url: URL, *, pool_size: int = 10) -> None:
        self._url = url.set(drivername="postgresql+asyncpg")
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._engine: AsyncEngine = create_async_engine(
            self._url, pool_size=pool_size, max_overflow=0, pool_pre_ping=False, pool_timeout=WRITE_TIMEOUT_SECONDS
        )
        self._writer = Writer(
            self._run_group,
            waiting_limit=WAITING_LIMIT,
            group_limit=GROUP_LIMIT,
            timeout_seconds=WRITE_TIMEOUT_SECONDS,
        )
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._unsent: dict[tuple[Topic, str], None] = {}
        self._something_unsent = asyncio.Event()

    async def start(self) -> None:
        """Connects. Raises SchemaOutdated if it must be migrated first."""
        async with self._engine.connect() as conn:
            await conn.run_sync(check_schema)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._writer.run()), loop.create_task(self._exchange_news())]

    async def migrate(self) -> None:
        """Brings the schema up to date; one process at a time."""
        async with self._engine.begin() as conn:
            await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await conn.run_sync(migrate_schema)

    async def read(self, function: Read[T]) -> T:
        """See `database.Database`."""
        async with self._engine.connect() as conn:
            return await conn.run_sync(lambda sync: function(sync, clock_of(sync)))

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
        """Flushes what waits, and disconnects."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks) if self._tasks else None
        await self._engine.dispose()

    async def _run_group(self, group: Callable[[Tx], list[Any]]) -> list[Any]:
        news: list[tuple[Topic, str]] = []

        def run(conn: Connection) -> list[Any]:
            tx = Tx(conn, clock_of(conn)(), news)
            return group(tx)

        async with self._engine.begin() as conn:
            results = await conn.run_sync(run)
        for item in news:
            self._tell(*item)
        self._unsent |= dict.fromkeys(news)
        self._something_unsent.set()
        return results

    async def _exchange_news(self) -> None:
        """Sends and hears news on a connection of its own, for ever."""
        while True:
            try:
                conn: Any = await connect(self._dsn, timeout=WRITE_TIMEOUT_SECONDS)
                try:
                    await conn.add_listener(CHANNEL, self._heard)
                    self._tell("any", "")  # whatever was said while nobody listened
                    await self._send_news(conn)
                finally:
                    with contextlib.suppress(Exception):
                        await conn.close(timeout=1)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                log.warning("no news from PostgreSQL; connecting again", error=repr(error))
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _send_news(self, conn: Any) -> None:
        while True:
            await self._something_unsent.wait()
            self._something_unsent.clear()
            unsent, self._unsent = self._unsent, {}
            for payload in _payloads(unsent):
                await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, payload, timeout=WRITE_TIMEOUT_SECONDS)

    def _heard(self, _conn: Any, pid: int, _channel: str, payload: str) -> None:
        for line in payload.splitlines():
            topic, _, name = line.partition(" ")
            if topic in {"job", "due", "models", "people"}:
                self._tell(topic, name)  # pyright: ignore[reportArgumentType]

    def _tell(self, topic: Topic, name: str) -> None:
        for listener in self._listeners:
            listener(topic, name)


def _payloads(news: dict[tuple[Topic, str], None]) -> list[str]:
    """The news as few payloads, none over PostgreSQL's limit."""
    payloads, size = [list[str]()], 0
    for topic, name in news:
        line = f"{topic} {name}"
        if size + len(line) >= NOTIFY_BYTES:
            payloads.append([])
            size = 0
        payloads[-1].append(line)
        size += len(line) + 1
    return ["\n".join(lines) for lines in payloads if lines]
