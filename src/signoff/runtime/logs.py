"""What models wrote and how they failed: on its way to the store, in batches, behind whoever says it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import structlog

from signoff.catalog import ModelLogs
from signoff.core.log import Level, LogLine

# The newest lines of a model that are kept, all hosts together.
KEPT_LINES = 2000
MAX_TEXT_CHARS = 8192
# Lines that wait for the store; when it is away for longer, the oldest are dropped.
WAITING_LINES = 10_000
LINES_AT_ONCE = 1000
GATHER_SECONDS = 0.2
LAST_SECONDS = 2.0
log = structlog.get_logger()


class ModelLogWriter:
    """Logs by the names of models, the same from every process. `clock` gives microseconds since 1970."""

    def __init__(self, store: ModelLogs, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._waiting = deque[tuple[str, LogLine]]()
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._dropped = 0

    def add(self, name: str, level: Level, text: str) -> None:
        """A line, which is in the store a moment later."""
        text = text[:MAX_TEXT_CHARS].replace("\0", "�")  # which PostgreSQL does not take
        self._waiting.append((name, LogLine(at=self._clock(), level=level, text=text)))
        self._bound()
        self._wake.set()

    async def read(self, name: str) -> list[LogLine]:
        """All lines that are kept, oldest first."""
        await self.write()
        return sorted(await self._store.read(name, KEPT_LINES), key=lambda entry: entry.at)

    async def clean(self, name: str) -> None:
        """Forgets all lines. Those that another process has just heard may come after that."""
        async with self._writing:
            self._waiting = deque(line for line in self._waiting if line[0] != name)
            await self._store.clean(name)

    async def run(self) -> None:
        """Writes what there is, for ever, and the rest at the end."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._try()
                await asyncio.sleep(GATHER_SECONDS)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._try()

    async def write(self) -> None:
        """Writes what waits. Raises Overloaded and its kin: then it waits on."""
        async with self._writing:
            while self._waiting:
                lines = [self._waiting.popleft() for _ in range(min(len(self._waiting), LINES_AT_ONCE))]
                try:
                    await self._store.add(lines, kept=KEPT_LINES)
                except BaseException:
                    self._waiting.extendleft(reversed(lines))
                    self._bound()
                    raise

    async def _try(self) -> None:
        try:
            await self.write()
        except Exception as error:  # noqa: BLE001 -- the store is away; the lines wait for it, as far as there is room
            log.warning("the logs of models could not be written", error=repr(error), waiting=len(self._waiting))
            self._wake.set()
        if self._dropped:
            log.error("lines of models' logs were dropped: the store did not take them in time", lines=self._dropped)
            self._dropped = 0

    def _bound(self) -> None:
        while len(self._waiting) > WAITING_LINES:
            self._waiting.popleft()
            self._dropped += 1
