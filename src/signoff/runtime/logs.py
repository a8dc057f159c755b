"""Logs of models, written to the store in batches, in the background."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import structlog

from signoff.catalog import ModelLogs
from signoff.core.log import Level, LogLine

# Lines of a model that are stored, all hosts together; older ones are deleted.
MAX_LINES = 2000
MAX_TEXT_CHARS = 8192
# Lines that wait for the store. If it is unavailable for longer, the oldest are dropped.
MAX_PENDING_LINES = 10_000
BATCH_LINES = 1000
BATCH_SECONDS = 0.2
FLUSH_SECONDS = 2.0
log = structlog.get_logger()


class ModelLogWriter:
    """Logs by name of the model, shared by all processes. `clock` returns microseconds since 1970."""

    def __init__(self, store: ModelLogs, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._pending = deque[tuple[str, LogLine]]()
        self._write_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._dropped = 0

    def add(self, name: str, level: Level, text: str) -> None:
        """Add a line, to be written within BATCH_SECONDS. A long text is truncated to MAX_TEXT_CHARS."""
        text = text[:MAX_TEXT_CHARS].replace("\0", "�")  # PostgreSQL does not accept NUL characters
        self._pending.append((name, LogLine(at=self._clock(), level=level, text=text)))
        self._drop_oldest()
        self._wake.set()

    async def read(self, name: str) -> list[LogLine]:
        """Return all stored lines, oldest first, after writing the pending ones. Raises Overloaded."""
        await self.write()
        return sorted(await self._store.read(name, MAX_LINES), key=lambda entry: entry.at)

    async def clean(self, name: str) -> None:
        """Delete all lines of a model. Lines pending in other processes may still be written afterwards."""
        async with self._write_lock:
            self._pending = deque(line for line in self._pending if line[0] != name)
            await self._store.clean(name)

    async def run(self) -> None:
        """Write pending lines, again and again; when cancelled, write the rest within FLUSH_SECONDS."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._try_write()
                await asyncio.sleep(BATCH_SECONDS)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._try_write()

    async def write(self) -> None:
        """Write the pending lines. They stay pending if the store raises, for example Overloaded."""
        async with self._write_lock:
            while self._pending:
                lines = [self._pending.popleft() for _ in range(min(len(self._pending), BATCH_LINES))]
                try:
                    await self._store.add(lines, max_lines=MAX_LINES)
                except BaseException:
                    self._pending.extendleft(reversed(lines))
                    self._drop_oldest()
                    raise

    async def _try_write(self) -> None:
        try:
            await self.write()
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the lines stay pending
            log.warning("model_log_write_failed", error=repr(error), pending=len(self._pending))
            self._wake.set()
        if self._dropped:
            log.error("model_log_lines_dropped", lines=self._dropped)
            self._dropped = 0

    def _drop_oldest(self) -> None:
        while len(self._pending) > MAX_PENDING_LINES:
            self._pending.popleft()
            self._dropped += 1
