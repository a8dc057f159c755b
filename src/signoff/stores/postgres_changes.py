"""News between processes on PostgreSQL: NOTIFY and LISTEN, on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, cast, get_args

import asyncpg
import structlog

from signoff.store import Topic
from signoff.stores.changes import ChangeFeed

log = structlog.get_logger()
connect = cast("Any", asyncpg).connect  # it has no types of its own

CHANNEL = "signoff"
PAYLOAD_BYTES = 7900  # PostgreSQL takes payloads under 8000 bytes
UNSENT_LIMIT = 10_000
ANSWER_SECONDS = 10.0
PROBE_SECONDS = 10.0
RECONNECT_SECONDS = 0.5
CLOSE_SECONDS = 1.0
ANYTHING: dict[tuple[Topic, str], None] = {("any", ""): None}


class PostgresChangeFeed:
    """Sends what this process says, and tells `news` what others say. What gets lost on the way becomes `any`."""

    def __init__(self, dsn: str, news: ChangeFeed) -> None:
        self._dsn = dsn
        self._news = news
        self._unsent: dict[tuple[Topic, str], None] = {}
        self._wake = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connects, again and again if need be."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def publish(self, items: Iterable[tuple[Topic, str]]) -> None:
        """Tells the other processes, soon; what is said twice meanwhile is sent once."""
        self._unsent |= dict.fromkeys(items)
        if len(self._unsent) > UNSENT_LIMIT:
            self._unsent = dict(ANYTHING)
        self._all_sent.clear()
        self._wake.set()

    async def close(self) -> None:
        """Sends what was said, if that is possible soon."""
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
                await self._converse()
            except Exception as error:  # noqa: BLE001 -- whatever it was, another connection may do
                log.warning("no news from PostgreSQL; connecting again", error=repr(error))
                self.publish(ANYTHING)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _converse(self) -> None:
        """Hears and sends until the connection is lost, which raises. A probe finds one that died silently."""
        conn: Any = await connect(self._dsn, timeout=ANSWER_SECONDS, command_timeout=ANSWER_SECONDS)
        try:
            conn.add_termination_listener(self._lost)
            await conn.add_listener(CHANNEL, self._heard)
            self._news.publish("any", "")  # whatever was said while nobody listened
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                await self._send(conn)
        finally:
            with contextlib.suppress(Exception):
                await conn.close(timeout=1)

    def _lost(self, _conn: Any) -> None:
        self._wake.set()  # to notice it

    async def _send(self, conn: Any) -> None:
        unsent, self._unsent = self._unsent, {}
        if not unsent:
            await conn.execute("SELECT 1")
        for payload in payloads(unsent):
            await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        if not self._unsent:
            self._all_sent.set()

    def _heard(self, conn: Any, pid: int, _channel: str, payload: str) -> None:
        if pid == conn.get_server_pid():
            return  # ours: told already
        for line in payload.splitlines():
            topic, _, name = line.partition(" ")
            if topic in get_args(Topic):
                self._news.publish(cast("Topic", topic), name)


def payloads(items: Iterable[tuple[Topic, str]]) -> list[str]:
    """The news as few payloads, none over PostgreSQL's limit; a name that fits into none becomes `any`."""
    packed, size_bytes = [list[str]()], 0
    for topic, name in items:
        line = f"{topic} {name}"
        if len(line.encode()) > PAYLOAD_BYTES:
            line = "any "
        if size_bytes + len(line.encode()) > PAYLOAD_BYTES:
            packed.append([])
            size_bytes = 0
        packed[-1].append(line)
        size_bytes += len(line.encode()) + 1
    return ["\n".join(lines) for lines in packed if lines]
