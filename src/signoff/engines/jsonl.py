"""JSON lines with a program: one request a line, one answer a line, by ids in any order or simply one after another."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Literal

import msgspec

from signoff.core.model import Timeouts
from signoff.errors import (
    ModelCrashed,
    ModelFailed,
    ModelGarbled,
    ModelTimedOut,
    ModelUnreachable,
    Overloaded,
    SignoffError,
    TooLarge,
)

MAX_LINE_BYTES = 32 * 2**20
MAX_BODY_BYTES = MAX_LINE_BYTES - 4096
MAX_WAITING = 4096
SHOWN_CHARS = 100
# Timers may be a little early.
SLACK_SECONDS = 0.05

Kind = Literal["delta", "body", "error", "failure"]
ENDS: tuple[Kind, ...] = ("failure", "error", "body")
NO_WORDS: dict[Kind, set[bytes]] = {"failure": {b"", b"null"}, "error": {b"", b"null"}, "body": {b""}}
NOTHING = msgspec.Raw(b"")
# What an owner says to another process when it leaves: whatever it has not answered, it has not asked.
FAREWELL = msgspec.json.encode({"id": "", "failure": {}}) + b"\n"


class NotDelivered(ModelUnreachable):
    """The program was gone before the request reached it, which can be asked at once where the model is then."""


class ProgramMessage(msgspec.Struct, frozen=True):
    """One thing that was said to a request: a piece of its answer, the whole of it, or why there is none."""

    kind: Kind
    raw: bytes


class _Line(msgspec.Struct):
    """A line of a program that knows of ids. `failure` is the owner's word to another process, see `neighbour`."""

    id: str
    delta: msgspec.Raw = NOTHING
    body: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING
    failure: msgspec.Raw = NOTHING


class _PendingRequest:
    """A request under way, and what was said to it and not taken yet."""

    def __init__(self, ask_id: str) -> None:
        self.id = ask_id
        self.said = asyncio.Queue[ProgramMessage | SignoffError]()
        self.is_gone = False
        self.is_in_order = False
        self.sent_at = 0.0
        self._size_bytes = 0

    def hear(self, said: ProgramMessage) -> None:
        """Keep what was said until the caller takes it; one who is too slow is not waited for."""
        self._size_bytes += len(said.raw)
        if self._size_bytes > MAX_LINE_BYTES:
            self.said.put_nowait(ModelGarbled("The model's answer is too large, or was taken too slowly."))
        else:
            self.said.put_nowait(said)

    async def take(self) -> ProgramMessage:
        said = await self.said.get()
        if isinstance(said, SignoffError):
            raise said
        self._size_bytes -= len(said.raw)
        return said


class JsonLinesClient:
    """The talk with one program for many callers.

    Each request goes out as `{"id", "operation", "body"}`. The first line that comes back tells which kind of program
    this is: one with the id of a request is by ids, any other JSON is the answer to the oldest request, and so on.
    """

    def __init__(
        self,
        name: str,
        reader: StreamReader,
        writer: StreamWriter,
        *,
        prefix: str,
        hang_up: Callable[[], None],
        by_id: bool | None = None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._prefix = prefix
        self._hang_up = hang_up
        self._count = 0
        self._by_id = by_id
        self._waiting: dict[str, _PendingRequest] = {}
        self._order = deque[_PendingRequest]()
        self._sending = asyncio.Lock()
        self._end: ModelFailed | None = None
        self._heard_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._is_guest = by_id is True

    @property
    def is_over(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._end is not None

    async def ask(self, operation: str, body: bytes, timeouts: Timeouts) -> AsyncGenerator[ProgramMessage, None]:
        """What is said to `body`, which is JSON, up to the last of it. Raises ModelFailed and its kin, Overloaded."""
        if self._end is not None:
            raise NotDelivered(f"The model {self._name} is not running.")
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"The model {self._name} takes {MAX_BODY_BYTES} bytes in a line.")
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests wait for the model {self._name} already.")
        self._count += 1
        asked = _PendingRequest(f"{self._prefix}-{self._count}")
        try:
            async for said in self._talk(asked, operation, body, timeouts):
                yield said
        finally:
            self._leave(asked)

    async def _talk(
        self, asked: _PendingRequest, operation: str, body: bytes, timeouts: Timeouts
    ) -> AsyncGenerator[ProgramMessage, None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = began + timeouts.total_seconds
        due, limit = min(end, loop.time() + timeouts.first_byte_seconds), timeouts.first_byte_seconds
        try:
            async with asyncio.timeout_at(due):
                await self._send(asked, operation, body)
            while True:
                async with asyncio.timeout_at(due):
                    said = await asked.take()
                yield said
                if said.kind != "delta":
                    return
                due, limit = min(end, loop.time() + timeouts.between_chunks_seconds), timeouts.between_chunks_seconds
        except TimeoutError:
            seconds = timeouts.total_seconds if due == end else limit
            if self._is_stuck(loop.time(), seconds):
                self._lose_stuck()
            self._watch(began, timeouts.total_seconds)
            raise ModelTimedOut(f"The model {self._name} said nothing for {seconds:g} s.") from None

    def _is_stuck(self, now: float, seconds: float) -> bool:
        """Whether a program without ids has worked on one request, of whomever, for so long."""
        return bool(self._order) and now - max(self._heard_at, self._order[0].sent_at) >= seconds - SLACK_SECONDS

    def _watch(self, asked_at: float, seconds: float) -> None:
        """One that answers by ids is given up when nothing at all has come from it for `seconds`, though it was asked.

        Its owner sees to that, for all who ask through it. While anything comes, one late answer says nothing.
        """
        if self._is_guest or self._alarm is not None or self._end is not None:
            return
        heard_at = self._heard_at

        def look() -> None:
            self._alarm = None
            if self._heard_at == heard_at and self._end is None:
                self._lose_stuck()

        due = max(heard_at, asked_at) + seconds - SLACK_SECONDS
        self._alarm = asyncio.get_running_loop().call_at(due, look)

    def _lose_stuck(self) -> None:
        self._lose(ModelCrashed(f"The model {self._name} was stuck, and is started anew."))

    async def _send(self, asked: _PendingRequest, operation: str, body: bytes) -> None:
        # A line break in JSON is only ever a blank between two tokens.
        flat = msgspec.Raw(body.replace(b"\n", b" ").replace(b"\r", b" "))
        line = msgspec.json.encode({"id": asked.id, "operation": operation, "body": flat})
        self._waiting[asked.id] = asked
        async with self._sending:
            with suppress(OSError):  # its end is noticed by whoever reads
                await self._writer.drain()  # first, so that those who leave meanwhile add nothing to what is not read
            if self._end is not None:
                raise _like(self._end)
            asked.sent_at = asyncio.get_running_loop().time()
            if not self._by_id:
                asked.is_in_order = True
                self._order.append(asked)
            self._writer.write(line + b"\n")

    def _leave(self, asked: _PendingRequest) -> None:
        """The caller does not listen any more. An answer that comes by its place in the order must still be skipped."""
        asked.is_gone = True
        if not asked.is_in_order:
            self._waiting.pop(asked.id, None)

    async def follow(self) -> None:
        """Hear what the program says, until it closes its output or says what cannot be understood."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n") and self._end is None:
                self._hear(line)
        except ValueError:
            self._garbled(f"a line of more than {MAX_LINE_BYTES} bytes")
        except OSError:
            pass
        self._hang_up()

    def _hear(self, line: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        try:
            line.decode()
            msgspec.json.decode(line, type=msgspec.Raw)
        except (ValueError, RecursionError):
            if line.strip() and not self._by_id and self._order:
                self._garbled(f"a line that is not JSON: {line[:SHOWN_CHARS].decode(errors='replace').strip()!r}")
            return
        try:
            told = msgspec.json.decode(line, type=_Line)
        except msgspec.ValidationError:
            told = None
        if self._is_guest and line == FAREWELL:
            self.end(NotDelivered(f"The model {self._name} has just stopped."))
        elif told is not None and told.id in self._waiting:
            self._hear_by_id(told)
        elif not self._by_id:
            self._hear_in_order(line.strip())

    def _hear_by_id(self, told: _Line) -> None:
        if not self._by_id:
            self._begin_by_id()
        asked = self._waiting.get(told.id)
        if asked is None:
            return
        if bytes(told.delta):
            asked.hear(ProgramMessage("delta", bytes(told.delta)))
        ends = {"failure": told.failure, "error": told.error, "body": told.body}
        said = [ProgramMessage(kind, bytes(ends[kind])) for kind in ENDS if bytes(ends[kind]) not in NO_WORDS[kind]]
        if said or not bytes(told.delta):
            asked.hear(said[0] if said else ProgramMessage("body", b"null"))

    def _begin_by_id(self) -> None:
        self._by_id = True
        self._order.clear()
        for asked in list(self._waiting.values()):
            asked.is_in_order = False
            if asked.is_gone:
                del self._waiting[asked.id]

    def _hear_in_order(self, line: bytes) -> None:
        if not self._order:
            if self._by_id is False:
                self._garbled("more lines than it was asked for")
            return
        self._by_id = False
        asked = self._order.popleft()
        asked.is_in_order = False
        self._waiting.pop(asked.id, None)
        asked.hear(ProgramMessage("body", line))

    def _garbled(self, what: str) -> None:
        """Nobody can tell any more whose answer comes next."""
        self._lose(ModelGarbled(f"The model {self._name} wrote {what}. What is no answer belongs on its stderr."))

    def _lose(self, error: ModelFailed) -> None:
        self.end(error)
        self._hang_up()

    def end(self, error: ModelFailed) -> None:
        """There is nobody to talk to any more: tell it to all who wait."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._end is None:
            self._end = error
            for asked in self._waiting.values():
                asked.said.put_nowait(_like(error))

    def crashed(self, how: str) -> None:
        """The program has ended."""
        self.end(ModelCrashed(f"The model {self._name} {how}"))


def _like(error: ModelFailed) -> ModelFailed:
    """An error of its own for each who is told."""
    return type(error)(error.message)
