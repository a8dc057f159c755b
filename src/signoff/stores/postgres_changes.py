"""Change notifications between processes through PostgreSQL: NOTIFY and LISTEN, on a connection of its own."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import structlog

from signoff.core.postgres_address import PostgresAddress
from signoff.store import Topic
from signoff.stores.changes import ANYTHING, ChangeFeed, pack_changes, unpack_changes
from signoff.stores.postgres_connection import open_connection

log = structlog.get_logger()

CHANNEL = "signoff"
MAX_PAYLOAD_BYTES = 7900  # PostgreSQL accepts payloads of less than 8000 bytes
MAX_UNSENT = 10_000
ANSWER_SECONDS = 10.0
PROBE_SECONDS = 10.0
RECONNECT_SECONDS = 0.5
CLOSE_SECONDS = 1.0


class PostgresChangeFeed:
    """The change notifications that this process exchanges with all others.

    Publish those of other processes to `changes`. Where some may have been lost, publish `any` instead.
    """

    def __init__(self, address: PostgresAddress, changes: ChangeFeed) -> None:
        self._address = address
        self._changes = changes
        self._unsent: dict[tuple[Topic, str], None] = {}
        self._wake = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to connect in the background, and connect again after each failure."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def publish(self, items: Iterable[tuple[Topic, str]]) -> None:
        """Queue notifications for the other processes. One that is queued already is sent once."""
        new = dict.fromkeys(items)
        if not new:
            return
        self._unsent |= new
        if len(self._unsent) > MAX_UNSENT:
            self._unsent = dict(ANYTHING)
        self._all_sent.clear()
        self._wake.set()

    async def close(self) -> None:
        """Send what is queued, if that is possible within a second, and disconnect."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._all_sent.wait()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._exchange()
            except Exception as error:  # noqa: BLE001 -- a new connection may succeed
                log.warning("postgres_listen_failed", error=repr(error))
                self.publish(ANYTHING)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _exchange(self) -> None:
        """Receive and send until the connection is lost, and raise then. Probe it, to notice when it died silently."""
        conn = await open_connection(self._address, ANSWER_SECONDS)
        try:
            conn.add_termination_listener(self._on_lost)
            await conn.add_listener(CHANNEL, self._on_notification)
            self._changes.publish("any", "")  # notifications were missed while there was no connection
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                await self._send(conn)
        finally:
            with contextlib.suppress(Exception):
                await conn.close(timeout=1)

    def _on_lost(self, _conn: Any) -> None:
        self._wake.set()  # so that the task uses the connection, and notices

    async def _send(self, conn: Any) -> None:
        unsent, self._unsent = self._unsent, {}
        if not unsent:
            await conn.execute("SELECT 1")
        for payload in pack_changes(unsent, MAX_PAYLOAD_BYTES):
            await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        if not self._unsent:
            self._all_sent.set()

    def _on_notification(self, conn: Any, pid: int, _channel: str, payload: str) -> None:
        if pid == conn.get_server_pid():
            return  # published by this process itself
        for topic, name in unpack_changes(payload):
            self._changes.publish(topic, name)
